"""Pictures carry their settings twice: as A1111 writes them, and exactly."""

import json

import pytest
from dpdmd_studio.core.errors import OutputError, RecipeError
from dpdmd_studio.core.files.png_info import (
    PictureInfo,
    UsedLora,
    parameters_text,
    png_texts,
    read_png,
    save_png,
)
from PIL import Image, PngImagePlugin

INFO = PictureInfo(
    prompt="a cat, été 日本\nsecond line",
    negative="blurry: yes",
    seed=42,
    width=8,
    height=16,
    steps=4,
    guidance_scale=1.0,
    schedule="Simple",
    model="my, model",
    model_hash="0123456789",
    clip_skip=2,
    loras=(UsedLora(name="few", strength=0.75, autov3="abcdef012345"),),
    version="DP-DMD Studio 1",
)
PICTURE = Image.new("RGB", (8, 16), (10, 20, 30))


def test_the_text_is_what_a1111_writes():
    assert parameters_text(INFO) == (
        "a cat, été 日本\nsecond line <lora:few:0.75>\n"
        "Negative prompt: blurry: yes\n"
        "Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 42, Size: 8x16, "
        'Model hash: 0123456789, Model: "my, model", Clip skip: 2, '
        'Lora hashes: "few: abcdef012345", Version: DP-DMD Studio 1'
    )


def test_a_saved_picture_gives_back_its_settings_and_pixels(tmp_path):
    path = save_png(tmp_path / "a.png", PICTURE, INFO)
    assert read_png(path) == INFO
    assert png_texts(path)["parameters"] == parameters_text(INFO)
    with Image.open(path) as read:
        assert read.tobytes() == PICTURE.tobytes()
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_are_not_overwritten_unasked(tmp_path):
    path = save_png(tmp_path / "a.png", PICTURE, INFO)
    with pytest.raises(OutputError, match="exists already"):
        save_png(path, PICTURE, INFO)
    save_png(path, PICTURE, INFO, overwrite=True)
    with pytest.raises(OutputError):
        save_png(tmp_path / "none" / "a.png", PICTURE, INFO)


def test_pictures_of_others_have_no_settings(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    PICTURE.save(tmp_path / "a.jpg")
    assert read_png(tmp_path / "a.png") is None
    assert read_png(tmp_path / "a.jpg") is None


@pytest.mark.parametrize(
    "source",
    ["", "[]", "{", "{}", '{"prompt": 3}', "[" * 5000, json.dumps({"prompt": "x" * 300_000})]
    + [json.dumps({"prompt": "a", "seed": 1, "width": 8, "height": 8, "steps": 4, **broken})
       for broken in ({"guidance_scale": "x"}, {"guidance_scale": 1, "loras": [{"x": 1}]},
                      {"guidance_scale": 1, "loras": 3}, {"guidance_scale": 1, "extra": []})],
)  # fmt: skip
def test_broken_settings_are_a_clear_error(tmp_path, source):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("dpdmd", source)
    PICTURE.save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(RecipeError, match=r"a\.png"):
        read_png(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_files_that_are_no_pictures_are_a_clear_error(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_png(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="no picture"):
        read_png(tmp_path / "none.png")

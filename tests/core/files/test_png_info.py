"""Pictures carry their settings twice: as A1111 writes them, and exactly."""

import json

import pytest
from dpdmd_studio.core.errors import OutputError
from dpdmd_studio.core.files.png_info import ImageInfo, UsedLora, parameters_text, save_png
from dpdmd_studio.core.files.png_text import read_png_text
from PIL import Image

INFO = ImageInfo(
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
    texts = read_png_text(path)
    assert texts["parameters"] == parameters_text(INFO)
    facts = json.loads(texts["dpdmd"])
    facts["loras"] = tuple(UsedLora(**lora) for lora in facts["loras"])
    assert ImageInfo(**facts) == INFO
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

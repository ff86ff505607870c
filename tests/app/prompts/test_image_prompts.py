"""Prompts out of PNGs: what hosts wrote, however damaged or hostile the files are."""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import zlib

import pytest
from dpdmd_studio.app.prompts.expansion import expand
from dpdmd_studio.app.prompts.images import graph_prompt, image_prompt
from dpdmd_studio.app.prompts.infotext import infotext_prompts
from dpdmd_studio.app.prompts.reading import read_prompts
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import ImageError, PromptError
from dpdmd_studio.core.files.png_text import SIGNATURE, read_png_text
from PIL import Image, PngImagePlugin

INFOTEXT = "a cat, (tall:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def png(*chunks: bytes, pixels: int = 10) -> bytes:
    """Text chunks before the image data, which is noise of that many bytes."""
    return b"".join([SIGNATURE, chunk(b"IHDR", bytes(13)), *chunks,
                     chunk(b"IDAT", bytes(pixels)), chunk(b"IEND", b"")])  # fmt: skip


def text(keyword: str, content: str) -> bytes:
    return chunk(b"tEXt", keyword.encode() + b"\0" + content.encode("latin-1"))


def packed(keyword: str, content: bytes) -> bytes:
    return chunk(b"zTXt", keyword.encode() + b"\0\0" + zlib.compress(content))


def international(keyword: str, content: str, *, compressed: bool) -> bytes:
    body = content.encode()
    flags = b"\1\0" if compressed else b"\0\0"
    body = zlib.compress(body) if compressed else body
    return chunk(b"iTXt", keyword.encode() + b"\0" + flags + b"de\0titel\0" + body)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (text("parameters", "a café"), "a café"),
        (packed("parameters", b"a cat"), "a cat"),
        (international("parameters", "ein Kätzchen 猫", compressed=False), "ein Kätzchen 猫"),
        (international("parameters", "ein Kätzchen 猫", compressed=True), "ein Kätzchen 猫"),
    ],
)
def test_every_kind_of_text_chunk_is_read(tmp_path, made, wanted):
    for name, content in {
        "before": png(made),
        "after": png()[: -len(chunk(b"IEND", b""))] + made + chunk(b"IEND", b""),
        "cut off behind it": png(made)[: -len(chunk(b"IEND", b"")) - 12],
    }.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        assert read_png_text(path) == {"parameters": wanted}, name


def test_what_pillow_writes_as_a1111_does_is_read(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", INFOTEXT)
    info.add_itxt("other", "ü")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_png_text(tmp_path / "a.png") == {"parameters": INFOTEXT, "other": "ü"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no PNG"),
        (b"\xff\xd8\xff\xe0 jpeg", "is no PNG"),
        (SIGNATURE + chunk(b"\0\1\2\3", b""), "damaged"),
        (png(chunk(b"zTXt", b"parameters\0\0not packed")), "cannot be unpacked"),
        (png(packed("parameters", bytes(20 << 20))), "more than 8 MiB"),
        (png(chunk(b"tEXt", b"a\0" + bytes(9 << 20))), "a text of 9 MiB"),
        (SIGNATURE + chunk(b"IDAT", b"") * 100_001, "more than 100,000 chunks"),
    ],
)
def test_damaged_and_hostile_files_are_refused(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_png_text(path)


def test_a_length_beyond_the_file_ends_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(text("parameters", "x")) [:-12] + b"\xff\xff\xff\xfftEXt")  # fmt: skip
    assert read_png_text(path) == {"parameters": "x"}


def test_infotext_gives_prompt_and_negative_on_one_line_each():
    many = "a cat,\non a mat\nNegative prompt: blurry,\nugly\nSteps: 4, Sampler: Euler"
    assert infotext_prompts(many) == ("a cat, on a mat", "blurry, ugly")
    assert infotext_prompts("a cat\r\nSteps: 4, Sampler: Euler") == ("a cat", "")
    assert infotext_prompts("Negative prompt: blurry\nSteps: 4, Size: 8x8") == ("", "blurry")
    assert infotext_prompts("a cat") == ("a cat", "")


def test_braces_of_a_drawn_prompt_stay_and_those_of_a_graph_are_alternatives():
    drawn, _ = image_prompt({"parameters": "a {red|blue} cat | dog"})
    assert expand(drawn, random.Random(0)) == "a {red|blue} cat | dog"
    graph = json.dumps(simple_graph("a {red|red} cat"))
    assert expand(image_prompt({"prompt": graph})[0], random.Random(0)) == "a red cat"


def simple_graph(prompt: object) -> dict:
    return {
        "3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["4", 1]}},
        "8": {"class_type": "PrimitiveString", "inputs": {"value": "from a node"}},
        "9": {"class_type": "Reroute", "inputs": {"text": ["9", 0]}},
    }


GUIDED = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["2", 0]}},
    "2": {"class_type": "CFGGuider", "inputs": {"positive": ["3", 0], "negative": ["5", 0]}},
    "3": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["4", 0], "guidance": 3.5}},
    "4": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0],
                                                         "conditioning_2": ["7", 0]}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly"}},
    "6": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "a cat", "text_l": "a cat"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "on a mat"}},
}  # fmt: skip


def test_graphs_are_followed_from_the_sampler_to_the_texts():
    assert graph_prompt(json.dumps(simple_graph("a cat"))) == "a cat"
    assert graph_prompt(json.dumps(simple_graph(["8", 0]))) == "from a node"
    assert graph_prompt(json.dumps(GUIDED)) == "a cat, on a mat"
    controlled = json.dumps(GUIDED).replace("FluxGuidance", "ControlNetApplyAdvanced").replace(
        '"conditioning": ["4", 0]', '"positive": ["4", 0], "negative": ["5", 0]'
    )  # fmt: skip
    assert graph_prompt(controlled) == "a cat, on a mat"


@pytest.mark.parametrize(
    "graph",
    [
        "",
        "[]",
        "{",
        '{"1": 5, "2": {"class_type": "KSampler", "inputs": []}}',
        '{"1": {"class_type": "KSampler", "inputs": {"positive": ["nowhere", 0]}}}',
        '{"1": {"class_type": "KSampler", "inputs": {"positive": ["1", 0]}}}',
        '{"1": {"class_type": "KSampler", "inputs": {"positive": NaN}}}',
        json.dumps(simple_graph(["9", 0])),
        "[" * (sys.getrecursionlimit() * 50),
    ],
)
def test_graphs_without_a_prompt_give_none(graph):
    assert graph_prompt(graph) == ""


def test_numbers_that_json_does_not_know_do_not_matter():
    graph = json.dumps(simple_graph("a cat") | {"1": {"inputs": {"denoise": float("nan")}}})
    assert "NaN" in graph and graph_prompt(graph) == "a cat"


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "b" / "loop").symlink_to(folder, target_is_directory=True)
    for name, content in {
        "2.png": png(text("parameters", INFOTEXT.replace("cat", "dog <lora:style:1>"))),
        "1.PNG": png(text("parameters", INFOTEXT)),
        "b/3.png": png(text("prompt", json.dumps(simple_graph("a bird")))),
        "b/4.png": png(text("parameters", INFOTEXT)),
        "plain.png": png(),
        "broken.png": b"nothing",
        "photo.heic": b"",
        ".hidden/5.png": png(text("parameters", "never seen")),
    }.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_read_in_order_with_notes(album):
    listed = read_prompts(album)
    assert listed.prompts == ("a cat, (tall:1.2)", "a dog, (tall:1.2)", "a bird")
    said = "\n".join(listed.notes)
    for part in (
        "6 images read, 4 with a prompt; 1 without one (plain.png); 1 damaged (broken.png)",
        "1 images of other kinds left out (only PNG, JPEG, WebP and AVIF are read)",
        "negative prompt 'blurry'",
        "style (1x)",
        "1 repeated prompts",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "it holds no image. Expected images as A1111"),
        (
            {"a.heic": b"", "b.GIF": b""},
            r"no image that can be read \(2 of other kinds; only PNG, J",
        ),
        ({"a.png": png(), "b.png": b"x"}, r"of its 2 images holds a prompt \(1 are damaged\)"),
    ],
)
def test_a_folder_without_prompts_is_refused(tmp_path, files, message, capsys):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message):
        read_prompts(tmp_path)


def test_half_a_character_makes_an_image_damaged(tmp_path):
    (tmp_path / "a.png").write_bytes(png(text("parameters", '{"prompt": "a \\ud83d cat"}')))
    (tmp_path / "b.png").write_bytes(png(text("prompt", json.dumps(simple_graph("a \ud83d cat")))))
    (tmp_path / "c.png").write_bytes(png(text("parameters", "a dog")))
    found = read_prompts(tmp_path)
    assert found.prompts == ("a dog",) and "2 damaged (a.png, b.png)" in found.notes[0]


def test_the_command_line_says_it_in_one_line(tmp_path, files, capsys):
    (tmp_path / "a.png").write_bytes(png())
    command = ["distill", str(files["sd1"]), "--prompts", str(tmp_path), "--output"]
    assert main([*command, str(tmp_path / "out.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "none of its 1 images holds a prompt" in said and "Traceback" not in said


def test_picture_data_is_stepped_over(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    content = png(pixels=1 << 20)[:-12] + text("parameters", "x") + chunk(b"IEND", b"")
    path.write_bytes(content)
    read: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr(type(path), "open", lambda self, mode: Counting(content))
    assert read_png_text(path) == {"parameters": "x"}
    assert sum(read) < 200

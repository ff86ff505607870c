"""Prompts out of JPEGs and WebPs: what hosts write into EXIF and comments, however damaged."""

from __future__ import annotations

import json
import random
import struct

import pytest
from dpdmd_studio.app.prompts.images import image_prompt
from dpdmd_studio.app.prompts.reading import read_prompts
from dpdmd_studio.core.errors import ImageError, PromptError
from dpdmd_studio.core.files.image_text import read_image_text
from dpdmd_studio.core.files.png_text import SIGNATURE
from PIL import Image, features

INFOTEXT = (
    "ein Kätzchen 猫, {rot|blau}\nNegative prompt: ugly\nSteps: 20, Sampler: Euler a, Seed: 1"
)
DRAWN = r"ein Kätzchen 猫, \{rot\|blau\}"
UNICODE, ASCII = b"UNICODE\0", b"ASCII\0\0\0"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a {red|blue} café", "clip": ["4"]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["4", 1]}},
}  # fmt: skip


def saved(path, format, exif, **options):
    Image.new("RGB", (8, 8)).save(path, format=format, exif=exif, **options)
    return path


def by_a1111(path, format, comment):
    """As A1111, Forge and SD.Next do: the text is a UserComment in the block's second directory."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    return saved(path, format, exif.tobytes())


def by_comfyui(path, graph, **more):
    """As SaveAnimatedWEBP does."""
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(graph)}"
    tag = 0x010F
    for name, content in more.items():
        exif[tag] = f"{name}:{json.dumps(content)}"
        tag -= 1
    return saved(path, "WEBP", exif)


COMMENTS = {
    "A1111": UNICODE + INFOTEXT.encode("utf-16-be"),
    "little endian": UNICODE + INFOTEXT.encode("utf-16-le"),
    "with its mark": UNICODE + INFOTEXT.encode("utf-16"),
    "zeros at the end": UNICODE + INFOTEXT.encode("utf-16-be") + bytes(2),
    "UTF-8 that is called Unicode": UNICODE + INFOTEXT.encode(),
    "ASCII that is UTF-8": ASCII + INFOTEXT.encode(),
    "no code": bytes(8) + INFOTEXT.encode(),
    "plain": INFOTEXT.encode(),
}


NEEDS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="Pillow here reads no AVIF")


@pytest.mark.parametrize("format", ["JPEG", "WEBP", pytest.param("AVIF", marks=NEEDS_AVIF)])
@pytest.mark.parametrize("encoding", COMMENTS)
def test_infotext_is_read_however_the_comment_is_encoded(encoding, format, tmp_path):
    path = by_a1111(tmp_path / "a.jpg", format, COMMENTS[encoding])
    assert read_image_text(path) == {"UserComment": INFOTEXT}
    assert image_prompt(read_image_text(path)) == (DRAWN, "ugly")


def test_an_image_of_any_size_is_read(tmp_path):
    path = by_a1111(tmp_path / "a.jpg", "JPEG", COMMENTS["A1111"])
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 40_000, 40_000)
    path.write_bytes(content)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert image_prompt(read_image_text(path)) == (DRAWN, "ugly")


def test_a_prompt_of_other_letters_alone_has_the_order_of_its_settings(tmp_path):
    text = f"{'猫' * 900}\nSteps: 4, Sampler: Euler, Seed: 1"
    for order in ("utf-16-be", "utf-16-le"):
        path = by_a1111(tmp_path / "a.jpg", "JPEG", UNICODE + text.encode(order))
        assert image_prompt(read_image_text(path))[0] == "猫" * 900


def test_comfyuis_webp_names_its_graph_in_the_model(tmp_path):
    path = by_comfyui(tmp_path / "a.webp", GRAPH, workflow={"nodes": []}, other=[1])
    found = read_image_text(path)
    assert json.loads(found["prompt"]) == GRAPH
    assert found.keys() == {"prompt", "workflow", "other"}
    assert image_prompt(found) == ("a {red|blue} café", "")


def test_a_comment_in_a_jpeg_counts_with_settings_alone(tmp_path):
    path = tmp_path / "a.jpg"
    saved(path, "JPEG", b"", comment=INFOTEXT.encode())
    assert image_prompt(read_image_text(path)) == (DRAWN, "ugly")
    saved(path, "JPEG", b"", comment=b"CREATOR: gd-jpeg v1.0 (using IJG JPEG v62), quality = 90")
    assert image_prompt(read_image_text(path)) == ("", "")


@pytest.mark.parametrize("text", ["Screenshot", "Shot by Ann: 50 mm, f/2", "", "a cat on a mat"])
def test_what_a_camera_or_a_person_writes_is_no_prompt(text, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x010E] = "Canon", "EOS: 5D {x}", "a day at the sea"
    exif[0x0131] = "GIMP 2.10"
    exif.get_ifd(0x8769)[0x9286] = ASCII + text.encode()
    path = saved(tmp_path / "a.jpg", "JPEG", exif)
    found = read_image_text(path)
    assert (found["Description"], found["Software"]) == ("a day at the sea", "GIMP 2.10")
    assert image_prompt(found) == ("", "")


def test_other_programs_json_names_the_prompt(tmp_path):
    swarm = {"sui_image_params": {"prompt": "a swarm", "negativeprompt": "x"}}
    path = by_a1111(tmp_path / "a.jpg", "JPEG", UNICODE + json.dumps(swarm).encode("utf-16-be"))
    assert image_prompt(read_image_text(path)) == ("a swarm", "x")
    exif = Image.Exif()  # Fooocus puts it into the first directory, without a code
    exif[0x9286] = json.dumps({"prompt": "a fox", "negative_prompt": "y"})
    path = saved(tmp_path / "b.webp", "WEBP", exif)
    assert image_prompt(read_image_text(path)) == ("a fox", "y")
    exif = Image.Exif()
    exif[0x0131], exif[0x010E] = "NovelAI", "a novel"
    path = saved(tmp_path / "c.webp", "WEBP", exif)
    assert image_prompt(read_image_text(path)) == ("a novel", "")
    inner = json.dumps({"prompt": "ein Märchen", "uc": "z"}, ensure_ascii=False)
    novel = json.dumps({"Software": "NovelAI", "Comment": inner}, ensure_ascii=False)
    path = by_a1111(tmp_path / "d.webp", "WEBP", ASCII + novel.encode())
    assert image_prompt(read_image_text(path)) == ("ein Märchen", "z")


def test_windows_comment_is_read_as_the_comment_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x9C9C] = INFOTEXT.encode("utf-16-le") + bytes(2)
    path = saved(tmp_path / "a.jpg", "JPEG", exif)
    assert image_prompt(read_image_text(path)) == (DRAWN, "ugly")


def test_a_folder_of_all_kinds_is_read_with_one_count(tmp_path):
    by_a1111(tmp_path / "1.JPG", "JPEG", COMMENTS["A1111"])
    by_a1111(tmp_path / "2.jpeg", "JPEG", COMMENTS["A1111"].replace(*(
        word.encode("utf-16-be") for word in ("Kätzchen", "Hund"))))  # fmt: skip
    by_comfyui(tmp_path / "3.webp", GRAPH)
    by_comfyui(tmp_path / "4.png", GRAPH)  # a wrong ending
    saved(tmp_path / "5.webp", "WEBP", b"")
    (tmp_path / "6.webp").write_bytes(b"RIFF")
    (tmp_path / "7.heic").write_bytes(b"")
    found = read_prompts(tmp_path)
    assert found.prompts == (DRAWN, DRAWN.replace("Kätzchen", "Hund"), "a {red|blue} café")
    assert found.notes[0] == (
        "6 images read, 4 with a prompt; 1 without one (5.webp); 1 damaged (6.webp); 1 images of "
        "other kinds left out (only PNG, JPEG, WebP and AVIF are read)."
    )


def test_an_avif_where_pillow_knows_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x1cftypavif" + bytes(20))
    with pytest.raises(ImageError, match=r"a\.avif is an AVIF, which this Pillow does not read"):
        read_image_text(path)


def test_none_of_these_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    for content in (b"", b"GIF89a" + bytes(20), b"RIFF\0\0\0\0WAVE", SIGNATURE[:4]):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="is no PNG, JPEG, WebP or AVIF"):
            read_image_text(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff\xe0\0\x04ab" + b"nothing",
        b"\xff\xd8" + b"\xff\xe0\0\2" * 100_001,
        b"RIFF\0\0\0\0WEBP" + (b"VP8 " + bytes(4)) * 100_001,
        b"RIFF\0\0\0\0WEBPEXIF" + struct.pack("<I", 9 << 20),
        b"\0\0\0\x1cftypavif" + b"\xff" * 100,
    ],
)
def test_damaged_and_hostile_files_are_refused(content, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="is damaged"):
        read_image_text(path)


@pytest.mark.parametrize("kind", [1, 2, 7], ids=["bytes", "ASCII", "undefined"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_comment_in_the_first_directory_is_read_whatever_its_type(order, kind, tmp_path):
    text = UNICODE + INFOTEXT.encode("utf-16-be")
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHII", 0x9286, kind, len(text), 26)
    block = head + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4) + text
    path = saved(tmp_path / "a.jpg", "JPEG", b"Exif\0\0" + block)
    assert read_image_text(path) == {"UserComment": INFOTEXT}


def test_a_directory_that_leads_to_itself_ends(tmp_path):
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry
    assert read_image_text(saved(tmp_path / "a.jpg", "JPEG", block)) == {}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(kind, tmp_path):
    path, chance = tmp_path / "a", random.Random(4)
    whole = by_a1111(path, kind, COMMENTS["A1111"]).read_bytes()
    place = whole.index(b"II*\0" if b"II*\0" in whole else b"MM\0*")
    for _ in range(150):
        content = bytearray(whole[: chance.randint(1, len(whole))])
        for _ in range(chance.randint(0, 4)):
            at = (
                chance.randrange(len(content))
                if chance.random() < 0.3
                else place + chance.randrange(60)
            )
            if at < len(content):
                content[at] = chance.choice((0, 1, 255, chance.randrange(256)))
        path.write_bytes(content)
        try:
            texts = read_image_text(path)
        except ImageError:
            continue
        assert all(isinstance(text, str) for text in texts.values())


def test_only_photos_without_prompts_are_refused_by_count(tmp_path):
    saved(tmp_path / "a.jpg", "JPEG", b"")
    with pytest.raises(PromptError, match="none of its 1 images holds a prompt"):
        read_prompts(tmp_path)

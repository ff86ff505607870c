"""A prompts file gives its prompts, says what it dropped, and fails with one clear sentence."""

from pathlib import Path

import pytest
from dpdmd_studio.app.prompts import reading as prompts_module
from dpdmd_studio.app.prompts.reading import MAX_FILE_BYTES, TAG, parse_prompts, read_prompts
from dpdmd_studio.core.errors import PromptError


def test_comments_blank_lines_and_repeats_are_left_out():
    found = parse_prompts("# title\n\n a cat \r\na dog\r\n   \ra cat\n  # more\n#1 fan\n", "p.txt")
    assert found.prompts == ("a cat", "a dog")
    assert found.notes == ("1 repeated prompts were left out.",)


def test_a_clean_file_needs_no_notes():
    assert parse_prompts("a cat, 100% #1 (a:1.2) {a|b}", "p.txt").notes == ()


def test_lora_tags_are_dropped_named_and_counted():
    text = (
        "a cat, <lora:Style XL:0.8>, night\n<lora:Style XL:1><LyCO:other:1:0.5> a dog\n<lora:x>\n"
    )
    found = parse_prompts(text, "p.txt")
    assert found.prompts == ("a cat, night", "a dog")
    assert "4 LoRA tags" in found.notes[0]
    assert "Style XL (2x)" in found.notes[0]
    assert "other (1x)" in found.notes[0]
    assert not TAG.search("a <3 b> <loras:x> <lora>")


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfun \xc3\xa9t\xc3\xa9\n")
    assert read_prompts(path).prompts == ("un été",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompts"),
        (b"# only\n\n", "holds no prompts"),
        (b"<lora:x:1>\n", "holds no prompts"),
        (b"caf\xe9\n", "line 1 holds the byte 0xe9"),
        (b"ok\nok\ncaf\xe9\n", "line 3"),
        ("ein Prüfstück".encode("utf-16"), "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "binary"),
        (b"a\x1b[31m\n", "control characters"),
        (b"x" * 20_000, "20000 characters"),
    ],
)
def test_files_that_hold_no_prompts_say_why(tmp_path, content, message):
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        read_prompts(path)


def test_missing_folders_and_huge_files_say_why(tmp_path):
    with pytest.raises(PromptError, match="no prompts file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(PromptError, match="is a folder"):
        read_prompts(tmp_path)
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + (1 << 20))
    with pytest.raises(PromptError, match="Is it the right file"):
        read_prompts(huge)


TEMPLATES = Path(prompts_module.__file__).parent / "templates"


@pytest.mark.parametrize("name", ["photo", "illustration", "tags"])
def test_starter_templates_are_clean_and_varied(name):
    found = read_prompts(TEMPLATES / f"{name}.txt")
    assert found.notes == ()
    assert len(found.prompts) >= 90
    assert sum("|" in prompt for prompt in found.prompts) >= 60
    assert all(prompt.count("{") == prompt.count("}") for prompt in found.prompts)

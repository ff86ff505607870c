"""A prompts file gives its prompts, says what it dropped, and fails with one clear sentence."""

import time
from pathlib import Path

import pytest
from dpdmd_studio.app.prompts import reading as prompts_module
from dpdmd_studio.app.prompts.reading import (
    MAX_FILE_BYTES,
    TAG,
    PromptList,
    parse_line,
    parse_prompts,
    prompts_text,
    read_prompts,
)
from dpdmd_studio.core.errors import PromptError


def test_comments_blank_lines_and_repeats_are_left_out():
    found = parse_prompts("# title\n\n a cat \r\na dog\r\n   \ra cat\n  # more\n#1 fan\n", "p.txt")
    assert found.prompts == ("a cat", "a dog")
    assert found.notes[1:] == ("1 repeated prompts were left out.",)


def test_a_comment_that_may_be_a_prompt_is_said_and_a_backslash_keeps_it():
    text = "# of cats\n#\n## more\n#1 fan art\n#hashtag\na cat\n"
    found = parse_prompts(text, "p.txt")
    assert found.prompts == ("a cat",)
    assert found.notes == (
        "2 lines that begin with # were left out as comments, such as '#1 fan art'. Where one is "
        "a prompt, put a backslash in front: \\#.",
    )
    found = parse_prompts("\\#1 fan art\n \\# a cat\n\\\\# x\na \\# b", "p.txt")
    assert found == PromptList(("#1 fan art", "# a cat", "\\# x", "a \\# b"))
    with pytest.raises(PromptError, match="begin with # are skipped"):
        parse_prompts("#1 fan art", "p.txt")


def test_a_text_made_of_prompts_gives_them_back():
    prompts = ("#1 fan art", "# x", "\\# y", "\\\\#", "a #1 cat", "{#a|b}", "\\{")
    assert parse_prompts(prompts_text(prompts), "p.txt").prompts == prompts


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


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("a __animal__ in __place/city__", "wildcards like __animal__ (2x)"),
        ("a cat, embedding:easynegative", "embedding:name (1x)"),
        ("a cat, (Embedding:easy:1.2)", "embedding:name (1x)"),
        ("a [cat:dog:0.5], [dog:.3] and [a::5]", "[from:to:when] (3x)"),
        ("a [cat|dog] runs", "alternation like [a|b] (1x)"),
        ("a cat AND a dog :1.2", "AND between prompts (1x)"),
        ("a cat ADDCOMM a dog", "ADDCOMM or [SEP] (1x)"),
        ("a <wildcard:animal> and <cat-toy>", "tags like <name:value> (2x)"),
        ("a cat --ar 16:9 --v 5", "options like --ar (2x)"),
        ("cat::2 dog::1", "weights like cat::2 or 2::cat:: (2x)"),
        ("1.5::cat ::, dog", "weights like cat::2 or 2::cat:: (1x)"),
        ("{{masterpiece}}, a cat", "braces without a choice like {cat} (1x)"),
        ('{"seed": 5}', "JSON (1x)"),
        ('[\n{"seed": 5},\n]', "JSON (3x)"),
        ('"a cat, on a mat"', "whole lines in quotation marks (1x)"),
        ("1. a cat\n2. a dog", "list marks before a prompt (2x)"),
        ("a cat &amp; a dog", "HTML like &amp; (1x)"),
        ("prompt,negative_prompt\na cat,ugly", "looks like the head of a table"),
        ("Prompt\na cat", "looks like the head of a table"),
    ],
)
def test_what_only_other_programs_carry_out_is_counted(text, noted):
    found = parse_prompts(text, "p.txt")
    assert any(noted in note for note in found.notes), found.notes
    if "\n" not in text:
        assert parse_line(text).notes == found.notes


@pytest.mark.parametrize(
    "text",
    [
        "a cat, (tall:1.2), [thin], 1girl, 3:4, 100% #1",
        "{2::a|3.5::b} cat, {2$$ and $$a|b}",
        "a cat BREAK a dog, rock and roll, x-ray - 3d",
        "a sign: prompt, text",
        "_under_ __ ___ :: a - b -- c, 12:30",
        "portrait of a man, size: big, model: Anna",
    ],
)
def test_ordinary_prompts_need_no_note(text):
    found = parse_prompts(text, "p.txt")
    assert (found.prompts, found.notes) == ((text,), ())


def test_the_prompt_of_json_lines_and_infotext_is_taken():
    found = parse_prompts('{"prompt": "a {red|blue} cat", "seed": 1}\n{"Prompt": "a dog"}', "p.txt")
    assert found.prompts == ("a {red|blue} cat", "a dog")
    assert found.notes == (
        "The prompt that JSON names was taken, and nothing else of it (2 lines).",
    )
    text = (
        "a cat\nNegative prompt: ugly\nSteps: 20, Seed: 1\na dog Steps: 4, Sampler: Euler, Seed: 2"
    )
    found = parse_prompts(text, "p.txt")
    assert found.prompts == ("a cat", "a dog")
    assert found.notes == ("Negative prompts and lines of settings were left out (3 lines).",)


def test_half_a_character_is_refused():
    for read in (parse_line, lambda text: parse_prompts(text, "p.txt")):
        with pytest.raises(PromptError, match="half a character"):
            read("a \ud83d cat")


def test_many_prompts_are_read_in_no_time():
    parts = (
        "[a|" * 300,
        "{a" * 400,
        "__a" * 300,
        "1::a" * 300,
        "<a" * 400,
        '{"' * 400,
        "a: " * 300,
    )
    text = "\n".join(f"{part} {number}" for number in range(60) for part in parts)
    begin = time.process_time()
    parse_prompts(text, "p.txt")
    assert time.process_time() - begin < 2

"""Reading prompts: a file with one a line, or a folder of images; LoRA tags are dropped and named.

What a line holds beside its prompt (JSON, infotext) is left out, and a note says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import PromptError
from . import foreign_syntax
from .expansion import check_alternatives
from .images import LONE_SURROGATE, MAX_PROMPT_CHARACTERS, folder_prompts, notes
from .infotext import infotext_prompts, is_infotext
from .structured import named_prompts

MAX_FILE_BYTES = 64 << 20
SHOWN, SHOWN_CHARACTERS = 5, 80
TAG = re.compile(r"<(?:lora|lyco|hypernet):([^<>:]*)(?::[^<>]*)?>", re.IGNORECASE)
HALF = "holds half a character (a lone surrogate). Type that place anew."
BINARY = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")
HASH = re.compile(r"\\*#")
"""How a line begins that is a comment, or would be one without the backslash before it."""
PROMPT_LIKE = re.compile(r"#[^\s#!=*~-]")
"""A comment without a blank behind its sign may be a prompt, such as "#1 fan art"."""


@dataclass(frozen=True)
class PromptList:
    """Prompts in the order of the file, and what a person should know of how they were read."""

    prompts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_prompts(path: Path) -> PromptList:
    """The prompts in the UTF-8 text file at `path`, or in the metadata of a folder's images.

    Raises:
        PromptError: the file is missing, empty, binary, not UTF-8, or far too large; a folder holds
            no image with a prompt.
    """
    path = Path(path)
    if path.is_dir():
        found = folder_prompts(path)
        return _listed(found.prompts, path.name, tuple(notes(found)))
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise PromptError(
                f"{path} has {size >> 20} MiB; a prompts file may have up to "
                f"{MAX_FILE_BYTES >> 20}. Is it the right file?"
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise PromptError(f"There is no prompts file {path}. Check the path.") from error
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_prompts(_decode(content, path.name), path.name)


def _decode(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PromptError(f"{name} is UTF-16 text. Save it as UTF-8, one prompt a line.")
    if b"\x00" in content:
        raise PromptError(f"{name} is a binary file; a text file of prompts was expected.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{name} is not UTF-8: line {line} holds the byte 0x{content[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from error


def parse_prompts(text: str, name: str) -> PromptList:
    """The prompts in `text`; `name` stands for it in messages."""
    lines: list[str] = []
    taken: Counter[str] = Counter()
    left_out: list[str] = []
    for number, whole in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = whole.strip()
        if PROMPT_LIKE.match(line):
            left_out.append(line)
        if not line or line.startswith("#"):
            continue
        if BINARY.search(line):
            raise PromptError(f"{name} is not a text file: line {number} holds control characters.")
        if LONE_SURROGATE.search(line):
            raise PromptError(f"{name}: line {number} {HALF}")
        if len(line) > MAX_PROMPT_CHARACTERS:
            raise PromptError(
                f"{name}: line {number} has {len(line)} characters; a prompt may have up to "
                f"{MAX_PROMPT_CHARACTERS}. Write one prompt a line."
            )
        if prompt := _prompt_of(line, taken):
            lines.append(prompt)
    said = [*(f"{what} ({count} lines)." for what, count in taken.items())]
    said += foreign_syntax.head_note(lines[0]) if lines else ()
    if left_out:
        shown = repr(left_out[0][:SHOWN_CHARACTERS])
        said.append(
            f"{len(left_out)} lines that begin with # were left out as comments, such as {shown}. "
            "Where one is a prompt, put a backslash in front: \\#."
        )
    return _listed(lines, name, tuple(said))


def prompts_text(prompts: Iterable[str]) -> str:
    """A text of a prompt a line that `parse_prompts` reads these from; none becomes a comment."""
    return "".join(f"\\{p}\n" if HASH.match(p) else f"{p}\n" for p in prompts)


def _prompt_of(line: str, taken: Counter[str]) -> str:
    """The prompt in a line of a file; `taken` counts what it stood in."""
    if line[0] == "\\" and HASH.match(line):
        line = line[1:]
    prompt, _ = (line[0] in "{[" and named_prompts(line)) or ("", "")
    if prompt and not re.search("[\x00-\x1f]", prompt) and not LONE_SURROGATE.search(prompt):
        taken["The prompt that JSON names was taken, and nothing else of it"] += 1
        return prompt
    if is_infotext(line):
        taken["Negative prompts and lines of settings were left out"] += 1
        return infotext_prompts(line)[0]
    return line


def _listed(lines: Iterable[str], name: str, notes: tuple[str, ...] = ()) -> PromptList:
    """The prompts without tags, each once."""
    tags: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for line in lines:
        prompt = _without_tags(line, tags)
        check_alternatives(prompt)
        if prompt:
            counts[prompt] += 1
    if not counts:
        raise PromptError(
            f"{name} holds no prompts. Write one prompt a line; blank lines and lines that begin "
            "with # are skipped."
        )
    return PromptList(tuple(counts), (*notes, *_notes(tags, counts)))


def parse_line(text: str) -> PromptList:
    """One prompt as it stands, which may be empty, without LoRA tags.

    Raises:
        PromptError: it holds half a character, as a terminal gives for bytes that are no text.
    """
    if LONE_SURROGATE.search(text):
        raise PromptError(f"The prompt {HALF}")
    tags: Counter[str] = Counter()
    prompt = _without_tags(text, tags)
    return PromptList((prompt,), tuple(_notes(tags, Counter([prompt]))))


def _without_tags(line: str, tags: Counter[str]) -> str:
    """The prompt without <lora:...> and the like, which `tags` counts by name."""
    found = TAG.findall(line)
    if not found:
        return line
    tags.update(name.strip() for name in found)
    bare = re.sub(r"[ \t]{2,}", " ", TAG.sub("", line))
    return re.sub(r"(?:\s*,)+", ",", bare).strip(" ,")


def _notes(tags: Counter[str], counts: Counter[str]) -> Iterator[str]:
    if tags:
        shown = ", ".join(f"{name} ({count}x)" for name, count in tags.most_common(SHOWN))
        more = f" and {len(tags) - SHOWN} others" if len(tags) > SHOWN else ""
        yield (
            f"{sum(tags.values())} LoRA tags were dropped from the prompts: {shown}{more}. To "
            "distil a model with a LoRA, name it with --teacher-lora FILE:STRENGTH."
        )
    repeated = sum(counts.values()) - len(counts)
    if repeated:
        yield f"{repeated} repeated prompts were left out."
    yield from foreign_syntax.notes(counts)

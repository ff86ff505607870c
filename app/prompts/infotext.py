"""The text that A1111 and its kin keep with an image: prompt, negative prompt, a line of settings.

Programs order the settings and part them as they like, and some write all of it on one line. A
line is settings where it is made of names that settings have, each with a value of its kind; a
prompt may hold such words, too, so only the last lines count.
"""

from __future__ import annotations

import re

# Settings with values that a prompt hardly has, and others, by name in small letters.
NUMBER = re.compile(r"-?\d+(?:\.\d+)?\s*$")
TELLING = {
    "steps": NUMBER,
    "seed": NUMBER,
    "cfg scale": NUMBER,
    "cfg": NUMBER,
    "guidance scale": NUMBER,
    "distilled cfg scale": NUMBER,
    "clip skip": NUMBER,
    "denoising strength": NUMBER,
    "size": re.compile(r"\d+\s*[xX*\u00d7]\s*\d+\s*$"),
}
OTHERS = {
    "sampler", "scheduler", "schedule type", "model", "model hash", "vae", "vae hash", "version",
    "rng", "ensd", "lora hashes", "hires upscale", "hires upscaler", "hires steps",
    "variation seed", "width", "height", "face restoration", "created date", "hashes",
}  # fmt: skip
PAIR = re.compile(r'(?:^|[,|;])\s*([A-Za-z][A-Za-z ]{0,40}?)\s*:\s*("(?:\\.|[^"\\])*"|[^,|;]*)')
NEGATIVE = re.compile(r"^[ \t]*negative[ _]prompt:", re.IGNORECASE | re.MULTILINE)
LABEL = re.compile(r"\s*(?:positive[ _])?prompt:\s", re.IGNORECASE)
# All on one line: only what no prompt says by chance.
TAIL = re.compile(r"[\s,]Steps: ?\d+[,|;] ?(?:Sampler|Schedule type|CFG scale|Seed|Size): ?")
PROMPT_BEFORE = re.compile(rf"[^\s,|;]{TAIL.pattern}")
NEGATIVE_INSIDE = re.compile(r"\s[Nn]egative prompt:")


def infotext_prompts(text: str) -> tuple[str, str]:
    """(prompt, negative prompt) of such a text, each on one line."""
    lines = re.split(r"\r\n|\r|\n", text)
    last = next((n for n in range(len(lines) - 1, -1, -1) if is_settings_line(lines[n])), None)
    if last is None:
        return _parted_in_line("\n".join(lines))
    while last and is_settings_line(lines[last - 1]):  # settings that run over several lines
        last -= 1
    return _parted("\n".join(lines[:last]), NEGATIVE)


def is_infotext(line: str) -> bool:
    """Whether one line holds more than a prompt: settings, or a negative prompt."""
    return ":" in line and bool(NEGATIVE.match(line) or TAIL.search(line) or is_settings_line(line))


def holds_settings(text: str) -> bool:
    """Whether a text of any length is such a text beyond doubt: it has a line of settings."""
    return TAIL.search(text) is not None or any(map(is_settings_line, text.splitlines()))


def is_settings_line(line: str) -> bool:
    """Whether a line is settings: two that are known, or one that stands alone."""
    if not PAIR.match(line) or PROMPT_BEFORE.search(line):
        return False
    telling = others = pairs = 0
    for match in PAIR.finditer(line):
        name, value = match[1].lower(), match[2].strip(' "')
        pairs += 1
        telling += name in TELLING and TELLING[name].match(value) is not None
        others += name in OTHERS
    alone = pairs == 1 and not re.search("[,|;]", line)
    return bool(telling) and (telling + others >= 2 or alone)


def _parted_in_line(text: str) -> tuple[str, str]:
    """The same of a text whose line breaks were lost; one without settings is a prompt."""
    tail = TAIL.search(text)
    if tail is None:
        return _parted(text, NEGATIVE)
    text = text[: tail.start()]
    return _parted(text, NEGATIVE if NEGATIVE.search(text) else NEGATIVE_INSIDE)


def _parted(text: str, negative: re.Pattern[str]) -> tuple[str, str]:
    label = LABEL.match(text)
    text = text[label.end() :] if label else text
    match = negative.search(text)
    if match is None:
        return one_line(text), ""
    return one_line(text[: match.start()]), one_line(text[match.end() :])


def one_line(text: str) -> str:
    """The text without control characters, line breaks and repeated blanks."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())

"""Whether a checkpoint's name or title speaks of a few-step model: a hint, and no proof."""

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest

TITLES = ("modelspec.title", "ss_output_name")
"""What an author or a trainer wrote into the file about what it is."""
ANYWHERE = re.compile(r"turbo|lightning", re.IGNORECASE)
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
"""`dreamshaper_8LCM` has the words dreamshaper, 8 and LCM."""
KINDS = ("lcm", "tcd", "pcm")
DMD = ("dmd", "2")
"""DP-DMD has no number."""
HYPER, STEPS = "hyper", ("step", "steps")
BEHIND_HYPER = re.compile(r"sd\w*|xl|v|fp|vae|baked|lora|steps?|\d*")
"""Behind "hyper" where it is ByteDance's Hyper-SD, and not "hyper realistic"."""
MOST_STEPS, MOST_CHARACTERS = 10, 400


def few_step_notes(name: str, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """A note where the name or the metadata's titles say that the model needs few steps already.

    Args:
        name: of the file or folder.
    """
    titles = [(f"metadata ({key})", metadata.get(key, "")) for key in TITLES]
    for where, text in [("name", re.sub(r"\.safetensors$", "", name)), *titles]:
        word = few_step_word(text[:MOST_CHARACTERS])
        if word:
            return (
                f"The {where} says {word!r}: it may be a few-step model already. Such a model "
                "needs no distilling, and drawn with guidance, as a teacher is, its images burn "
                "out. If it is one, use it as it is, or distil the checkpoint that it was made "
                "from.",
            )
    return ()


def few_step_word(text: str) -> str:
    """What in a name speaks of a few-step model, such as "Lightning" or "4step"; "" for nothing."""
    found = ANYWHERE.search(text)
    if found:
        return found[0]
    words = WORDS.findall(text)
    return next(_signs(words), "")


def _signs(words: list[str]) -> Iterator[str]:
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        low, behind = word.lower(), after.lower()
        hyper = low == HYPER and BEHIND_HYPER.fullmatch(behind) is not None
        if low in KINDS or (low, behind) == DMD or hyper:
            yield word
        if low.isdigit() and behind in STEPS and 1 <= int(low[:9]) <= MOST_STEPS:
            yield f"{word} {after}"

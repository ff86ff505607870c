"""What the program around the pages knows: nothing where they stand alone, more inside a host.

A host sets `current` once; the pages ask it. Everything has a default that means "not known".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def _nothing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a host tells the pages; each is asked anew whenever it is needed.

    Attributes:
        listed: whether files are looked for; a page that is being built does not wait.
        folders: where its models lie, beside those that are found without it.
        checkpoints: the files that it lists, which may be links to anywhere.
        lora_folder: where new LoRAs go; None leaves that to the person.
        checkpoint: the file that it has loaded; None for none.
        prompt_lists: names of lists of prompts that it holds.
        read_prompts: the text of one of them, one prompt a line.
        clip_skip: the clip skip that it samples with; None where it has none.
        prompt_tag: the words of a prompt that call a LoRA's file; "" where it has no such words, or
            does not know that file.
        before_start: called before a run is queued, such as to free memory.
    """

    listed: bool = True
    folders: Callable[[], Sequence[Path]] = tuple
    checkpoints: Callable[[], Sequence[Path]] = tuple
    lora_folder: Callable[[], Path | None] = _nothing
    checkpoint: Callable[[], Path | None] = _nothing
    prompt_lists: Callable[[], Sequence[str]] = tuple
    read_prompts: Callable[[str], str] = str
    clip_skip: Callable[[], int | None] = _nothing
    prompt_tag: Callable[[Path], str] = lambda path: ""
    before_start: Callable[[], None] = _nothing


ALONE = Surroundings()
current = ALONE


def use(surroundings: Surroundings) -> None:
    """Tell the pages what is around them."""
    global current
    current = surroundings

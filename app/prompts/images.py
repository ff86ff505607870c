"""Prompts out of the user's own images: what programs wrote into them; no pixel is read.

A1111's `parameters` text holds the prompt as it was drawn, alternatives chosen: its braces stand
for themselves. In a JPEG, WebP or AVIF it is the comment, where cameras write too: there it counts
only with a line of settings. ComfyUI saves the graph with the texts of its widgets, where
alternatives may still stand; they are treated like those of a prompts file. Other programs keep
JSON, in that field or in one of their own (`structured.py`). Negative prompts are never taken.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import ImageError, PromptError
from ...core.files.image_text import read_image_text
from .expansion import check_alternatives
from .infotext import holds_settings, infotext_prompts, one_line
from .structured import named_prompts

MAX_IMAGES, MAX_PROMPT_CHARACTERS = 100_000, 10_000
SHOWN = 3
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which no text file and no tokenizer takes."""
IMAGES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif")
OTHER_IMAGES = (".jxl", ".heic", ".gif", ".bmp", ".tif", ".tiff")
KINDS = "PNG, JPEG, WebP and AVIF"
COMMENTS = ("UserComment", "Comment")
"""Fields that hold what the first does in some programs, and anything in others."""
DATA_FIELDS = ("invokeai_metadata", "sd-metadata", "metadata")
"""Fields where InvokeAI and others keep JSON that names the prompt; some do in a comment."""
NOVELAI = "NovelAI"
SAMPLERS = ("KSampler", "SamplerCustom", "Sampler")
"""Beginnings of class names whose `positive` (or `guider`) input leads to the prompt."""
TEXT_INPUTS = ("text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl", "prompt", "positive")
STRING_INPUTS = ("value", "string", "text", "STRING", "prompt", "text_a", "string_a")
CONDITIONING_INPUTS = ("positive", "conditioning", "conditioning_1", "conditioning_to", "cond",
                       "base_positive", "guider")  # fmt: skip
MAX_NODES = 2000


@dataclass
class Found:
    """What a folder of images holds."""

    prompts: list[str] = field(default_factory=list)
    negatives: Counter[str] = field(default_factory=Counter)
    images: int = 0
    others: int = 0
    without: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def folder_prompts(folder: Path) -> Found:
    """The prompts in the metadata of all images in a folder and its subfolders, in order of path.

    Raises:
        PromptError: no image holds a prompt.
    """
    found = Found()
    for path in _images(folder, found):
        found.images += 1
        if found.images > MAX_IMAGES:
            raise PromptError(
                f"{folder} holds more than {MAX_IMAGES:,} images. Name a folder with fewer."
            )
        try:
            prompt, negative = image_prompt(read_image_text(path))
            check_alternatives(prompt)
        except (ImageError, OSError, PromptError):
            found.damaged.append(path.name)
            continue
        if LONE_SURROGATE.search(prompt):
            found.damaged.append(path.name)
        elif 0 < len(prompt) <= MAX_PROMPT_CHARACTERS:
            found.prompts.append(prompt)
            found.negatives[negative] += 1
        else:
            found.without.append(path.name)
    if not found.prompts:
        raise PromptError(_nothing(folder, found))
    return found


def notes(found: Found) -> Iterator[str]:
    """What a person should know of how the images were read."""
    parts = [f"{found.images} images read, {len(found.prompts)} with a prompt"]
    for names, what in ((found.without, "without one"), (found.damaged, "damaged")):
        if names:
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            parts.append(f"{len(names)} {what} ({shown})")
    if found.others:
        parts.append(f"{found.others} images of other kinds left out (only {KINDS} are read)")
    yield "; ".join(parts) + "."
    if found.negatives:
        negative, count = found.negatives.most_common(1)[0]
        if negative and 2 * count > len(found.prompts):
            yield (
                f"Most of these images have the negative prompt {_shortened(negative)!r}. "
                "--teacher-negative distils one into the LoRA."
            )


def image_prompt(texts: Mapping[str, str]) -> tuple[str, str]:
    """(prompt, negative prompt) in an image's texts by name; both empty where there is none."""
    for prompt, negative in _drawn(texts):
        if prompt and named_prompts(prompt) is None:
            return re.sub(r"([{}|])", r"\\\1", one_line(prompt)), one_line(negative)
    prompt = graph_prompt(texts.get("prompt", ""))
    return ("", "") if named_prompts(prompt) else (prompt, "")


def _drawn(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(prompt as it was drawn, negative prompt) of each field that may hold one."""
    for name in ("parameters", *COMMENTS, *DATA_FIELDS):
        text = texts.get(name, "")
        found = named_prompts(text)
        if found is not None:
            yield found
        elif name == "parameters" or (name in COMMENTS and holds_settings(text)):
            yield infotext_prompts(text)
    if texts.get("Software", "").startswith(NOVELAI):
        yield texts.get("Description", ""), ""


def graph_prompt(text: str) -> str:
    """The positive prompt of a ComfyUI graph in API form; empty where none is found."""
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(graph, dict):
        return ""
    nodes = {str(k): v for k, v in list(graph.items())[:MAX_NODES] if isinstance(v, dict)}
    for node in nodes.values():
        if str(node.get("class_type", "")).startswith(SAMPLERS):
            for name in ("positive", "guider", "conditioning"):
                found = _texts(nodes, _inputs(node).get(name), set())
                if found:
                    return one_line(", ".join(dict.fromkeys(found)))
    return ""


def _texts(nodes: Mapping[str, dict], link: Any, seen: set[str]) -> list[str]:
    """Texts of the encoders that a conditioning link leads to, nearest first."""
    waiting, found = [link], []
    while waiting:
        key = _target(waiting.pop(0))
        if key is None or key not in nodes or key in seen:
            continue
        seen.add(key)
        inputs = _inputs(nodes[key])
        own = [_string(nodes, inputs.get(name)) for name in TEXT_INPUTS if name in inputs]
        own = [text for text in own if text]
        found += own
        if not own:
            waiting += [inputs.get(name) for name in CONDITIONING_INPUTS]
            waiting += [v for k, v in inputs.items() if k.startswith("conditioning")]
    return found


def _string(nodes: Mapping[str, dict], value: Any) -> str:
    """A text, or the text of the string node that a link leads to."""
    seen: set[str] = set()
    while not isinstance(value, str):
        key = _target(value)
        if key is None or key not in nodes or key in seen:
            return ""
        seen.add(key)
        inputs = _inputs(nodes[key])
        value = next((inputs[name] for name in STRING_INPUTS if name in inputs), None)
    return value.strip()


def _target(link: Any) -> str | None:
    """The node that a link [node, output] names."""
    return str(link[0]) if isinstance(link, list) and len(link) == 2 else None


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _images(folder: Path, found: Found) -> Iterator[Path]:
    """Images below the folder; hidden names are left out and links to folders not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if name.lower().endswith(IMAGES):
                yield Path(place) / name
            found.others += name.lower().endswith(OTHER_IMAGES)


def _nothing(folder: Path, found: Found) -> str:
    if found.images:
        problem = f"none of its {found.images} images holds a prompt"
        if found.damaged:
            problem += f" ({len(found.damaged)} are damaged)"
    else:
        problem = "it holds no image"
        if found.others:
            problem += f" that can be read ({found.others} of other kinds; only {KINDS} are)"
    return (
        f"{folder} is a folder, and {problem}. Expected images as A1111 or ComfyUI save them, "
        "with their settings inside, or a text file with one prompt a line."
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."

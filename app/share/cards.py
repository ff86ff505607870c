"""The small files beside a LoRA that hosts and sites read: cards, model information, notes."""

from __future__ import annotations

import json
from typing import Any

from ...core.families import family
from ...core.files.hashes import EMPTY_AUTOV1
from ...core.recipe.recipe import is_unusual_flow, shift_to_set
from .describe import SAMPLER, SCHEDULE, TAGS, clip_skip, license_text, limits, summary
from .facts import LORA_STRENGTH, PackageFacts
from .labels import base_model_note
from .names import one_line


def settings_line(facts: PackageFacts) -> str:
    """All settings in one line."""
    recipe, (width, height) = facts.recipe, facts.size
    parts = [
        f"{SAMPLER}, Schedule type {SCHEDULE}, {recipe.num_steps} steps",
        f"CFG {recipe.guidance_scale:g}, strength {LORA_STRENGTH:.1f}, {width} x {height}",
    ]
    if clip_skip(recipe) > 1:
        parts.append(f"Clip skip {clip_skip(recipe)}")
    shift = shift_to_set(recipe)
    if shift is not None:
        parts.append(f"shift {shift:g}{' as a rectified flow' if is_unusual_flow(recipe) else ''}")
    return ", ".join(parts)


def webui_card(facts: PackageFacts) -> str:
    """NAME.json: the card that A1111 and Forge show, and what a click on it writes."""
    card = {
        "description": f"{summary(facts)} {settings_line(facts)}.",
        "sd version": family(facts.family).sharing.webui_version,
        "activation text": ", ".join(facts.trigger_words),
        "preferred weight": LORA_STRENGTH,
        "negative text": "",
        "notes": "\n".join([f"{settings_line(facts)}.", *limits(facts), license_text(facts)]),
    }
    return _json(card)


def civitai_info(facts: PackageFacts, page: str) -> str:
    """NAME.civitai.info: a model version as Civitai's interface describes one.

    It has no ids, since the site gives those; programs that read the file take that for "not on
    the site".
    """
    hashes = {
        "AutoV2": facts.hashes.autov2.upper(),
        "SHA256": facts.hashes.sha256.upper(),
        "AutoV3": facts.hashes.autov3.upper(),
    }
    if facts.hashes.autov1 != EMPTY_AUTOV1:
        hashes["AutoV1"] = facts.hashes.autov1.upper()
    info: dict[str, Any] = {
        "name": facts.title,
        "baseModel": facts.label,
        "trainedWords": list(facts.trigger_words),
        "description": page,
        "model": {"name": facts.title, "type": "LORA", "nsfw": False, "poi": False},
        "files": [
            {
                "name": facts.file,
                "sizeKB": facts.bytes / 1024,
                "type": "Model",
                "primary": True,
                "metadata": {"format": "SafeTensor"},
                "hashes": hashes,
            }
        ],
        "images": [],
        "tags": list(TAGS),
    }
    return _json(info)


def upload_notes(facts: PackageFacts) -> str:
    """CIVITAI.txt: what to put into the site's upload form."""
    checkpoint = facts.checkpoint
    note = base_model_note(facts.family, checkpoint.detection.title, embedded=checkpoint.embedded)
    words = ", ".join(facts.trigger_words) or 'none; tick that the model "needs none"'
    steps = one_line(facts.metadata.get("ss_steps", ""), 20) or "leave empty"
    skipping = family(facts.family).text.clip_skip
    skip = str(clip_skip(facts.recipe)) if skipping else "leave empty"
    return f"""\
How to upload this package to Civitai

Type                 LoRA
Name                 {facts.title}
Base model           {facts.label}
Trigger words        {words}
File                 {facts.file}
Images               all of pictures/, 01.png first; their settings are read from them
Description          open description.html in a browser, select all, copy, paste
Training steps       {steps}
Epochs               leave empty
Clip skip            {skip}
Strength             minimum 1, maximum 1
Tags                 {", ".join(TAGS)}
Recommended          the checkpoint {facts.teacher}

About the base model: {note}

About the licence: {license_text(facts)}

The site links an image to this LoRA by the hash in the image's text:
AutoV2               {facts.hashes.autov2}
AutoV3               {facts.hashes.autov3}
SHA256               {facts.hashes.sha256}

Hugging Face: upload the whole folder; README.md is the model card.
A1111, Forge: {facts.name}.json and {facts.name}.preview.png go beside the file into models/Lora.
"""


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

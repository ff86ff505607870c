"""A new run from what a page sends: names and values, all of them checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import PromptError, SettingsError
from .. import jobs
from ..config.distill_config import DistillConfig
from ..config.request import DistillRequest, ModelFiles
from ..jobs import Job
from ..library.model_folders import contained
from ..library.path_checks import lora_file
from ..prompts.reading import PromptList, parse_prompts

NAMES = ("checkpoint", "prompts", "title", "output_name", "config")


def new_run(body: Mapping[str, Any], model_folders: Sequence[Path], lora_folder: Path) -> Job:
    """Queue the run that a page describes; the LoRA gets a free name in the folder.

    Args:
        body: "checkpoint" (a path inside the model folders), "prompts" (a list, or a text with one
            a line), and, if wanted, "title", "output_name" and "config" (settings by name).

    Raises:
        DPDMDError: something is missing, unknown, of the wrong kind, or not possible.
    """
    unknown = sorted(set(body) - set(NAMES))
    if unknown:
        raise SettingsError(f"Unknown: {', '.join(unknown)[:200]}. Known are {', '.join(NAMES)}.")
    config = body.get("config", {})
    if not isinstance(config, dict):
        raise SettingsError("config is no table of settings; expected names and values.")
    checkpoint = contained(_text(body, "checkpoint"), model_folders)
    title = _text(body, "title")
    name = _text(body, "output_name") or title or f"{checkpoint.stem[:90]}-4step"
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(checkpoint)),
        config=DistillConfig.from_dict(config),
        output=str(jobs.free_output(lora_file(lora_folder, name))),
    )
    prompts = _prompts(body.get("prompts")).prompts
    return jobs.submit_distill(request, prompts, title, alone=True)


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise SettingsError(f"{name} is a {type(value).__name__}; a text was expected.")
    return value


def _prompts(given: object) -> PromptList:
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        given = "\n".join(given)
    if not isinstance(given, str):
        raise PromptError("There are no prompts; expected a list of texts, or one text.")
    return parse_prompts(given, "The list of prompts")

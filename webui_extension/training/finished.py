"""New LoRAs in the host's folder: a preview image and a card beside each, and they are listed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ...app.jobs import Job
from ...app.library.path_checks import is_inside, resolved
from ...app.report.images import first_image
from ...app.runs.previews import student_previews
from ...core.errors import DPDMDError
from ...core.families import family
from ...core.files import atomic_write
from ...core.files.tensor_file import read_header
from ...core.recipe.recipe import Recipe, read_recipe, usage_hint
from ..host import folders, loras, models

ENDED = ("finished", "stopped")
MARK = "webui-card"
IMAGE_SIDE = 768
IMAGES = (".png", ".preview.png", ".jpg", ".jpeg", ".webp", ".gif")


def add_cards(every: Iterable[Job]) -> None:
    """Add a card to each LoRA that a run has written since this was last called."""
    new = [(job, path) for job in every if (path := _new_lora(job)) is not None]
    for job, path in new:
        with contextlib.suppress(DPDMDError, OSError):  # a card is not worth an error
            write_card(path, job.path)
            atomic_write.write_text(job.path / MARK, _version(path))
    if new:
        with models.generating():
            loras.relist_loras()


def _new_lora(job: Job) -> Path | None:
    """The LoRA of a run that has ended, if it lies in the host's folder and is new to us."""
    lora = job.result.get("lora") if job.kind == "distill" and job.state in ENDED else None
    if not isinstance(lora, str):
        return None
    path = Path(lora)
    try:
        if not is_inside(resolved(lora), resolved(str(folders.lora_folder()))):
            return None
        mark = job.path / MARK
        seen = mark.read_text(encoding="utf-8") if mark.exists() else ""
        return path if path.is_file() and seen != _version(path) else None
    except (OSError, ValueError):
        return None


def _version(path: Path) -> str:
    return f"{path.stat().st_mtime_ns}\n"


def write_card(lora: Path, run: Path) -> None:
    """Write the image and the card that the host shows, each only where there is none.

    Raises:
        DPDMDError: the LoRA cannot be read, or its folder not be written.
        OSError: the image cannot be read or written.
    """
    sheets = student_previews(run)
    own = MARK + "-picture"
    mine = (run / own).exists()
    recipe = read_recipe(read_header(lora).metadata)
    if sheets and (mine or not any(lora.with_suffix(end).exists() for end in IMAGES)):
        with Image.open(sheets[-1].path) as sheet:
            cover(sheet, recipe).save(lora.with_suffix(".png"))
        atomic_write.write_text(run / own, "")
    place = lora.with_suffix(".json")
    if recipe is not None and not place.exists():
        atomic_write.write_text(place, json.dumps(card(recipe), indent=4) + "\n")


def cover(sheet: Image.Image, recipe: Recipe | None) -> Image.Image:
    """One image of a sheet of previews; of another layout an upright part of it, as cards are."""
    own = first_image(sheet, recipe.resolutions if recipe is not None else ())
    if own is not None:
        own = own.convert("RGB")
        own.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        return own
    width, height = sheet.size
    if width > height * 2 / 3:
        width = round(height * 2 / 3)
    else:
        height = round(width * 3 / 2)
    part = sheet.convert("RGB").crop((0, 0, width, height))
    part.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return part


def card(recipe: Recipe) -> dict[str, object]:
    """NAME.json: what the host's card says, and what a click on it writes."""
    return {
        "description": f"{recipe.num_steps} steps, CFG {recipe.guidance_scale:g}.",
        "sd version": family(recipe.family).sharing.webui_version,
        "activation text": "",
        "preferred weight": 1.0,
        "negative text": "",
        "notes": usage_hint(recipe),
    }

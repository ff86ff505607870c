"""Our section of the host's settings page."""

from __future__ import annotations

from pathlib import Path

from ...app.library.path_checks import typed_path
from ..host import folders, page
from ..sampling import infotext
from ..sampling.accordion import AUTO_SETUP
from ..sampling.sampler import EXACT_STRENGTH

SECTION = ("dpdmd", "DP-DMD")
FREE_MEMORY, LORA_FOLDER = "dpdmd_free_memory", "dpdmd_lora_folder"
SETTINGS = (
    {
        "name": AUTO_SETUP,
        "default": True,
        "label": "Set sampler, steps and CFG from the few-step LoRA in the prompt",
        "info": "how the accordion starts out; the UI has to be reloaded",
    },
    {
        "name": EXACT_STRENGTH,
        "default": False,
        "label": "Image to image starts exactly at the asked denoising strength",
        "info": "otherwise at the trained noise level nearest to it, which gives the best images",
        "infotext": infotext.EXACT_STRENGTH,
    },
    {
        "name": FREE_MEMORY,
        "default": True,
        "label": "Unload the checkpoint while a training run goes on",
        "info": "frees the graphics card's memory; it comes back afterwards, and for a generation",
    },
    {
        "name": LORA_FOLDER,
        "default": "",
        "label": "Folder for new LoRAs",
        "info": "empty: the folder of this program; others do not show up in its list of LoRAs",
        "private": True,
    },
)


def register() -> None:
    """Have the host show our settings."""
    page.on("ui_settings", add)


def add() -> None:
    """Put our settings on the page."""
    for setting in SETTINGS:
        page.add_setting(SECTION, setting)


def lora_folder() -> Path:
    """Where new LoRAs go."""
    chosen = str(page.option(LORA_FOLDER, "") or "").strip()
    return Path(typed_path(chosen)) if chosen else folders.lora_folder()

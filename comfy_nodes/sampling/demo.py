"""The node that loads the embedded checkpoint, with the text encoder that only it has."""

from __future__ import annotations

from typing import Any

from ...app.library.choices import ASSETS, EMBEDDED
from ...core.errors import SettingsError
from ..host import demo, models
from ..host.inputs import node_input


class DemoCheckpoint:
    """DP-DMD Demo Checkpoint."""

    DISPLAY_NAME = "DP-DMD Demo Checkpoint"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "Loads the small checkpoint that ships with this pack (64 x 64 pixels): sampling and "
        "distilling without a download. It knows few words; those that it does not are named."
    )
    SEARCH_ALIASES = ("example checkpoint", "test model", "emoji")
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    OUTPUT_TOOLTIPS = (
        "Its network.",
        "Its own small text encoder; core's Text Encode takes it.",
        "Its VAE.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        names = list(LOADABLE)
        return {"required": {"ckpt_name": node_input(names, "A checkpoint of this pack.")}}

    def load(self, ckpt_name: str) -> tuple[models.Model, Any, Any]:
        """MODEL, CLIP and VAE of the file.

        Raises:
            SettingsError: there is no such file.
        """
        path = ASSETS / LOADABLE.get(ckpt_name, "")
        if not path.is_file():
            raise SettingsError(
                f"{ckpt_name!r} is no demo checkpoint of this pack, or its file is missing from "
                f"{ASSETS}. Choose one from the list, or install the pack anew."
            )
        return demo.load(path)


LOADABLE = {label: name for name, label in EMBEDDED.items() if name.endswith("-sd3.safetensors")}
"""What ComfyUI has a network for: it knows a UNet by widths that the small one has not."""
NODES = (DemoCheckpoint,)

"""What an embedded teacher's file says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...core.errors import CheckpointError
from ...core.families import SHAPES_KEY
from ...core.files.tensor_file import read_header


def shapes_facts(checkpoint: Path) -> dict[str, Any]:
    """Guidance scale, steps and resolution of an embedded teacher; empty for other checkpoints.

    Raises:
        CheckpointError: the file's own statement is damaged.
    """
    if not checkpoint.is_file():
        return {}
    text = read_header(checkpoint).metadata.get(SHAPES_KEY, "{}")
    try:
        facts = json.loads(text)
        guidance = facts.get("guidance_scale")
        if facts and not isinstance(guidance, (int, float)):
            raise TypeError(f"guidance_scale is {guidance!r}")
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint.name}: its {SHAPES_KEY} metadata is damaged ({error}). Take the file as "
            "it was shipped."
        ) from error
    return facts

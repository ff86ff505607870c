"""What a checkpoint says of itself in its metadata: settings it was made for, an encoder it brings.

The teachers that ship with this program have such a statement, a JSON object: `guidance_scale`,
`steps`, `resolution`, `world` (what they draw: "shapes", "emoji"), `credits` (whose pictures they
learned from), and `text_encoder`, the kind of the encoder that lies under `ENCODER_PLACE`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files.tensor_file import TensorFile, read_header
from .base import Detection

STATED_KEY = "dpdmd.teacher"
FIRST_KEY, FIRST_WORLD = "dpdmd.shapes", "shapes"
"""Where the first teachers have their statement, and the world of those that name none."""
ENCODER_PLACE = "dpdmd_text_encoder.transformer."
USUAL_ENCODER = "dpdmd"
"""The kind of the encoder in a file that states none."""


def states(file: TensorFile) -> bool:
    """Whether the file says something of itself."""
    return STATED_KEY in file.metadata or FIRST_KEY in file.metadata


def _text(file: TensorFile) -> str:
    return file.metadata.get(STATED_KEY) or file.metadata.get(FIRST_KEY, "{}")


def read_stated(file: TensorFile) -> Mapping[str, object]:
    """The statement, for detection: what cannot be read, or is not there, is empty."""
    try:
        stated = json.loads(_text(file))
    except (ValueError, RecursionError):
        stated = {}
    found = dict(stated) if isinstance(stated, dict) else {}
    kind = found.pop("text_encoder", USUAL_ENCODER)
    if states(file) and any(name.startswith(ENCODER_PLACE) for name in file.tensors):
        found["text_encoder"] = kind if isinstance(kind, str) else USUAL_ENCODER
    return found


def stated_resolution(stated: Mapping[str, object]) -> int | None:
    """The side in pixels that the checkpoint was made for, if it says a possible one."""
    side = stated.get("resolution")
    valid = type(side) is int and 16 <= side <= 4096 and side % 16 == 0
    return side if valid else None  # type: ignore[return-value]


def stated_encoder(detection: Detection) -> str | None:
    """The kind of the text encoder that the checkpoint brings in place of its family's."""
    kind = detection.stated.get("text_encoder")
    return kind if isinstance(kind, str) else None


def stated_credits(detection: Detection) -> str:
    """Whose pictures the checkpoint was trained on, to be named wherever its images are shown."""
    found = detection.stated.get("credits")
    return found if isinstance(found, str) else ""


def stated_settings(checkpoint: Path) -> dict[str, Any]:
    """The statement, for its settings: guidance_scale, steps, resolution, world; often empty.

    Raises:
        CheckpointError: it is damaged.
    """
    if not checkpoint.is_file():
        return {}
    header = read_header(checkpoint)
    try:
        facts = json.loads(_text(header))
        guidance = facts.get("guidance_scale")
        if facts and not isinstance(guidance, (int, float)):
            raise TypeError(f"guidance_scale is {guidance!r}")
        if facts:
            facts.setdefault("world", FIRST_WORLD)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint.name}: its {STATED_KEY} metadata is damaged ({error}). Take the file as "
            "it was shipped."
        ) from error
    return facts

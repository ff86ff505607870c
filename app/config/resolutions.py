"""The image sizes of a run: those asked for, if the model can have them, else its own."""

from __future__ import annotations

from ...core.errors import SettingsError
from ...core.families import Detection
from .distill_config import DistillConfig


def choose_resolutions(config: DistillConfig, detection: Detection) -> tuple[tuple[int, int], ...]:
    """(width, height) pairs to train at: those asked for, else the model's own square.

    Raises:
        SettingsError: a size is too large for the model or not a multiple of what it needs.
    """
    found = config.resolutions or ((detection.resolution, detection.resolution),)
    step = detection.resolution_multiple
    limit = detection.max_resolution
    for width, height in found:
        if limit and max(width, height) > limit:
            raise SettingsError(
                f"resolution {width}x{height} is too large for {detection.title}, whose positions "
                f"reach to {limit} pixels a side."
            )
        if width % step or height % step:
            raise SettingsError(
                f"resolution {width}x{height} does not suit {detection.title}: both sides must be "
                f"multiples of {step}, such as {_nearest(width, step)}x{_nearest(height, step)}."
            )
    return found


def _nearest(size: int, step: int) -> int:
    return max(step, round(size / step) * step)

"""What can be found out about a new run before any heavy library is loaded, its image sizes too."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from ...core.errors import CheckpointError, OutputError, SettingsError
from ...core.families import Detection, check_files, family, set_otherwise
from ...core.files.atomic_write import check_output, try_name
from ...core.lora.contents import check_family, read_teacher_header
from ..library.path_checks import check_name
from .distill_config import USUAL_RESCALE, DistillConfig
from .found_files import completed
from .request import DistillRequest, asked_sampling

logger = logging.getLogger("dpdmd_studio.settings")


def check_request(folder: Path, request: DistillRequest, *, overwrite: bool) -> DistillRequest:
    """The request with absolute paths, once its files, settings and places are known to do.

    Only headers of the model files are read. What needs the trainer (does the device work, does
    every layer of the teacher LoRAs fit) comes out when the run begins.

    Args:
        folder: where the run will be.

    Raises:
        CheckpointError: a model file is missing or no supported model.
        LoraError: a teacher LoRA is no LoRA that can be read, or of another family.
        SettingsError: a setting is not possible with this model.
        OutputError: the LoRA or the run cannot be written where they shall go.
    """
    request, detection = check_inputs(request)
    request = dataclasses.replace(request, config=settled(request.config, detection))
    check_name(request.output)
    _check_places(Path(folder).resolve(), request, overwrite)
    return request


def check_inputs(request: DistillRequest) -> tuple[DistillRequest, Detection]:
    """The request with absolute paths, once what it reads and its settings are known to do.

    Files that a model lacks and that lie where hosts keep them are part of it.

    Raises:
        CheckpointError: a model file is missing or no supported model.
        LoraError: a teacher LoRA is no LoRA that can be read, or of another family.
        SettingsError: a setting is not possible with this model.
    """
    request = request.absolute()
    config = request.config.validate()
    for name in request.files():
        if not os.path.exists(name):
            raise CheckpointError(f"There is no file {name}. Check the spelling of the path.")
    model = completed(request.model)
    request = dataclasses.replace(request, model=model)
    vae = Path(model.vae) if model.vae else None
    detection = check_files(Path(model.checkpoint), model.text_encoders(), vae)
    for lora in request.teacher_loras:
        check_family(read_teacher_header(Path(lora.path)), family(detection.family))
    settled(config, detection)  # or it is refused
    choose_resolutions(config, detection)
    return request, detection


def settled(config: DistillConfig, detection: Detection) -> DistillConfig:
    """The settings with what suits the model where they leave it open.

    A new run is written with it, and goes on with it whatever suits later.

    Raises:
        SettingsError: models of the family cannot be sampled as the settings say.
    """
    asked = asked_sampling(config.prediction, config.zero_terminal_snr, config.shift)
    detection, _ = set_otherwise(detection, asked)
    config = config.anchored_for(detection.prediction)
    if config.guidance_rescale != USUAL_RESCALE:
        return config
    return dataclasses.replace(config, guidance_rescale=detection.guidance_rescale)


def _check_places(folder: Path, request: DistillRequest, overwrite: bool) -> None:
    """Raise OutputError now for all that would else come out after hours of training."""
    output = Path(request.output)
    check_output(output, overwrite=overwrite)
    if output.suffix.lower() != ".safetensors":
        raise OutputError(f"{output.name} must end in .safetensors; hosts look for that.")
    for name in request.files():
        if output.exists() and Path(name).exists() and output.samefile(name):
            raise OutputError(f"{output} is a file that this run reads. Name another --output.")
    if output == folder:
        raise OutputError(f"{output} is named for the LoRA and for the run's folder, too.")
    try_name(output)


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


def note_size(resolutions: Iterable[tuple[int, int]], detection: Detection) -> None:
    """Say so where images of a demo checkpoint get another size than the one that it can draw."""
    side = detection.resolution
    if "resolution" in detection.stated and any(size != (side, side) for size in resolutions):
        logger.info(
            "This checkpoint draws %d x %d pixels alone: images of other sizes come out wrong.",
            side,
            side,
        )


def _nearest(size: int, step: int) -> int:
    return max(step, round(size / step) * step)

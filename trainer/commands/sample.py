"""Images of a checkpoint, with or without a LoRA: the `sample` command."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, tensor

from ... import __version__
from ...app.config.distill_config import DistillConfig
from ...app.config.knobs import MAX_WHOLE_NUMBER, parse_resolutions
from ...app.config.new_run import choose_resolutions, note_size
from ...app.config.request import ModelFiles, asked_sampling
from ...app.library.home import prompt_cache
from ...core.diffusion.guidance import Guidance
from ...core.diffusion.schedule import few_step_positions
from ...core.errors import NonFiniteError, OutputError, SettingsError
from ...core.families import AskedSampling, family, identify
from ...core.files.hashes import file_hashes, file_sha256
from ...core.files.png_info import ImageInfo, UsedLora, save_png
from ...core.lora.contents import check_family
from ...core.lora.file import LoraFile, read_lora
from ...core.recipe.merged_loras import merged_lora_notes
from ...core.recipe.recipe import Recipe
from ..device import choose_device, device_explained, limit_to_free
from ..distributed import joined
from ..evaluation.sampling import TEACHER_STEPS, Trajectory, sample_latents
from ..loading.checkpoint import (
    Checkpoint,
    LoadedCheckpoint,
    OpenedCheckpoint,
    Overrides,
    apply_lora,
    model_name,
    open_checkpoint,
)
from ..loading.decoding import decode, finite_rows, overflow_advice
from ..loading.lora_merge import WITH_LORA, MergingLora, open_merging
from ..loading.number_format import Loaded, in_first_sound_format, number_formats
from ..memory.portions import Portions
from ..model.conditioning import Conditioning, PromptPair
from ..text.cache import EncodedPrompts, encode_prompts
from ..toys import encoder
from .open_session import default_guidance

SHOWN = 4
log = logging.getLogger("dpdmd_studio.commands")
T = TypeVar("T")
Job = tuple[tuple[int, int], Path]
"""(prompt number, seed) and where the image goes."""
Encoded = tuple[EncodedPrompts, tuple[int, int]]
"""All prompts, and the size of the images."""


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """What commands that draw images are asked. None takes what a LoRA's recipe or the family says.

    Attributes:
        with_loras: (file, strength) of LoRAs that are merged into the checkpoint.
    """

    BOUNDS: ClassVar[dict[str, tuple[int, int]]]

    model: ModelFiles
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    output: Path
    with_loras: tuple[tuple[str, float], ...] = ()
    negative: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    resolution: str = ""
    prediction: str = "auto"
    zero_terminal_snr: str = "auto"
    shift: float = 0.0
    batch_size: int = 4
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False

    def check(self) -> None:
        """Raise SettingsError for numbers outside their range, or sizes that are none."""
        for name, (low, high) in self.BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                words = name.replace("_", " ")
                found = f"{value:g}" if abs(value) < MAX_WHOLE_NUMBER else "a huge number"
                raise SettingsError(f"{words} is {found}; expected {low} to {high}.")
        parse_resolutions(self.resolution)


@dataclass(frozen=True, kw_only=True)
class SampleRequest(ImageRequest):
    """What to draw.

    Attributes:
        pairs: (prompt number from 0, seed) of each image; empty: every prompt with every seed.
    """

    BOUNDS: ClassVar = {
        "batch_size": (1, 1024),
        "steps": (1, 1000),
        "guidance_scale": (0, 50),
        "guidance_rescale": (0, 1),
        "clip_skip": (1, 12),
    }

    lora: tuple[str, float] | None = None
    guidance_rescale: float | None = None
    clip_skip: int | None = None
    pairs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Setup:
    """A request with everything that its defaults stood for."""

    checkpoint: LoadedCheckpoint
    encoded: EncodedPrompts
    sigmas: Tensor
    guidance: Guidance
    clip_skip: int
    size: tuple[int, int]
    loras: tuple[UsedLora, ...] = ()


def sample_images(request: SampleRequest) -> list[Path]:
    """Draw every prompt with every seed and save PNGs that carry their settings; their paths.

    Names are prompt number and seed, such as 001-00000042.png. Nothing is overwritten unasked.

    Raises:
        DPDMDError: whatever is wrong with the files or the settings.
    """
    advice = "Lower --batch-size or --resolution; images drawn so far are kept."
    with device_explained(SettingsError, advice):
        return draw_images(request)


def draw_images(request: SampleRequest) -> list[Path]:
    """As `sample_images`, but what a device lacks stays the RuntimeError that it is."""
    request.check()
    encoder.register()
    paths = _paths(request)
    setup = _prepare(request)
    encoded = setup.encoded
    model_hash = ""
    if setup.checkpoint.path.is_file():
        model_hash = file_sha256(setup.checkpoint.path)[:10]
    jobs = list(paths.items())
    started = time.perf_counter()
    done, blank = 0, []
    portions = Portions(setup.checkpoint.device, request.batch_size)
    guided = setup.guidance.scale != 1.0
    while done < len(jobs):
        part = _batch_of(jobs[done : done + portions.size(guided=guided)], request, encoded)
        work = partial(_latents, request, setup, [key for key, _ in part])
        latents = portions.attempt(len(part), work, guided=guided)
        if latents is None:
            continue
        images = _decoded(setup.checkpoint, latents)
        for ((number, seed), path), image in zip(part, images, strict=True):
            if image is None:
                blank.append(path.name)
                continue
            info = _info(request, setup, request.prompts[number], seed, model_hash)
            save_png(path, Image.fromarray(image), info, overwrite=request.overwrite)
        done += len(part)
        left = (time.perf_counter() - started) / done * (len(jobs) - done)
        log.info("%d of %d images, %.0f s left", done, len(jobs), left)
    if blank:
        shown = ", ".join(blank[:SHOWN]) + (", ..." if len(blank) > SHOWN else "")
        raise NonFiniteError(
            f"{len(blank)} of {len(jobs)} images were not drawn, since their latents hold NaN or "
            f"infinity: {shown}. {overflow_advice(setup.checkpoint.dtype)}"
        )
    return list(paths.values())


def _batch_of(jobs: list[Job], request: SampleRequest, encoded: EncodedPrompts) -> list[Job]:
    """The first of these jobs that one batch draws just as each alone would be drawn."""
    first = encoded[request.prompts[jobs[0][0][0]]]
    exact = [first.batches_exactly_with(encoded[request.prompts[key[0]]]) for key, _ in jobs]
    return jobs[: exact.index(False)] if False in exact else jobs


def _paths(request: SampleRequest) -> dict[tuple[int, int], Path]:
    """Where each (prompt number, seed) goes; OutputError if one exists and may not be replaced."""
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {request.output} cannot be made: {error}.") from error
    every = [(number, seed) for number in range(len(request.prompts)) for seed in request.seeds]
    paths = {
        (number, seed): request.output / f"{number + 1:03d}-{seed:08d}.png"
        for number, seed in request.pairs or every
    }
    taken = [path for path in paths.values() if path.exists()]
    if taken and not request.overwrite:
        others = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise OutputError(
            f"{taken[0]}{others} exists already. Add --overwrite to replace, or name another "
            "folder with --output."
        )
    return paths


def _prepare(request: SampleRequest) -> _Setup:
    """Encode the prompts, load the model, merge the LoRA, and settle what was left open."""
    lora = read_lora(Path(request.lora[0])) if request.lora else None
    recipe = lora.recipe if lora else None
    styles = open_styles(request, [lora] if lora else [])
    clip_skip = request.clip_skip or (recipe.clip_skip if recipe else None) or 1
    texts = [*request.prompts, request.negative]

    def encode(opened: OpenedCheckpoint) -> tuple[Encoded, Conditioning]:
        size = image_size(request, recipe, opened)  # refused before anything is loaded
        encoded = encode_prompts(opened, texts, clip_skip=clip_skip, cache_folder=prompt_cache())
        return (encoded, size), encoded[request.negative]

    device = choose_device(request.device)
    checkpoint, (encoded, size), _ = load_for_images(request, recipe, styles, device, encode)
    used = []
    if lora is not None and request.lora is not None:
        used.append(_apply(checkpoint, lora, request.lora[1]))
    used += [style.used() for style in styles]
    scale, rescale = request.guidance_scale, request.guidance_rescale
    if scale is None:
        scale = recipe.guidance_scale if recipe else default_guidance(checkpoint)
    if rescale is None:
        rescale = checkpoint.detection.guidance_rescale
    return _Setup(
        checkpoint,
        encoded,
        _sigmas(request, recipe, checkpoint),
        Guidance(scale, rescale),
        clip_skip,
        size,
        tuple(used),
    )


def open_styles(request: ImageRequest, loras: Sequence[LoraFile]) -> list[MergingLora]:
    """The LoRAs that are merged beside few-step `loras`; the log says what does not go together.

    Raises:
        LoraError: one of them all cannot be read, or is of another family than the checkpoint.
    """
    styles = [open_merging(Path(path), strength) for path, strength in request.with_loras]
    kind = family(identify(Path(request.model.checkpoint)).family)
    for file in [*loras, *(style.file for style in styles)]:
        check_family(file.contents, kind)  # before gigabytes are loaded
    for lora in loras:
        for note in merged_lora_notes(lora.recipe, [s.present() for s in styles], how=WITH_LORA):
            log.info("%s: %s", lora.path.name, note)
    return styles


def load_for_images(
    request: ImageRequest,
    recipe: Recipe | None,
    styles: list[MergingLora],
    device: torch.device,
    encode: Callable[[OpenedCheckpoint], tuple[T, Conditioning]],
) -> Loaded[T]:
    """The checkpoint in the number format that a run would take, and what was encoded with it.

    What the request leaves open is as the recipe has it, else as the file.

    Args:
        encode: encodes prompts before the denoiser is loaded; one of them is named apart.
    """
    limit_to_free(device)
    path, asked = Path(request.model.checkpoint), _asked(request, recipe)
    overrides = Overrides.of(request.model, asked, styles)

    def load(dtype: torch.dtype) -> Loaded[T]:
        opened = open_checkpoint(path, dtype=dtype, device=device, overrides=overrides)
        encoded, prompt = encode(opened)
        return opened.load(), encoded, prompt

    formats = number_formats(request.dtype, device, path, asked)
    return in_first_sound_format(formats, load, device, joined())


def _asked(request: ImageRequest, recipe: Recipe | None) -> AskedSampling:
    asked = asked_sampling(request.prediction, request.zero_terminal_snr, request.shift)
    if recipe is not None and asked.prediction in (None, recipe.prediction):
        zero = recipe.zero_terminal_snr if recipe.prediction == "v" else None
        asked = AskedSampling(
            prediction=recipe.prediction,
            zero_terminal_snr=zero if asked.zero_terminal_snr is None else asked.zero_terminal_snr,
            shift=recipe.shift if asked.shift is None else asked.shift,
        )
    return asked


def _apply(checkpoint: LoadedCheckpoint, lora: LoraFile, strength: float) -> UsedLora:
    apply_lora(checkpoint, lora, strength)
    for note in lora.not_applied():
        log.info("%s", note)
    autov3 = file_hashes(lora.path).autov3
    return UsedLora(name=lora.path.stem, strength=strength, autov3=autov3)


def _sigmas(request: SampleRequest, recipe: Recipe | None, checkpoint: Checkpoint) -> Tensor:
    if recipe is not None and request.steps not in (None, recipe.num_steps):
        log.info("This LoRA was trained for %d steps, not %d.", recipe.num_steps, request.steps)
    elif recipe is None and request.lora is not None and request.steps is None:
        log.info(
            "This LoRA holds no recipe; 4 steps without guidance are usual for few-step LoRAs."
        )
    usual = recipe.num_steps if recipe else TEACHER_STEPS
    return few_step_sigmas(request.steps or usual, recipe, checkpoint)


def few_step_sigmas(steps: int, recipe: Recipe | None, checkpoint: Checkpoint) -> Tensor:
    """The recipe's exact grid at the recipe's steps, else the family's even grid, (steps + 1,)."""
    if recipe is not None and recipe.num_steps == steps:
        return tensor(recipe.sigmas)
    return checkpoint.schedule.sigma_at(few_step_positions(steps))


def image_size(
    request: ImageRequest, recipe: Recipe | None, checkpoint: Checkpoint
) -> tuple[int, int]:
    """(width, height): what was asked for, else the recipe's, else the checkpoint's own."""
    if not request.resolution and recipe is not None and recipe.resolutions:
        return recipe.resolutions[0]
    asked = DistillConfig(resolution=request.resolution)
    size = choose_resolutions(asked, checkpoint.detection)[0]
    note_size([size], checkpoint.detection)
    return size


def _latents(request: SampleRequest, setup: _Setup, keys: list[tuple[int, int]]) -> Tensor:
    """Latents of each (prompt number, seed), (B, C, h, w)."""
    width, height = setup.size
    prompts = Conditioning.cat([setup.encoded[request.prompts[number]] for number, _ in keys])
    return sample_latents(
        setup.checkpoint.call(),
        PromptPair.of(prompts, setup.encoded[request.negative]),
        [seed for _, seed in keys],
        (setup.checkpoint.detection.latent_channels, height // 8, width // 8),
        Trajectory(setup.sigmas, setup.guidance),
    )


def _decoded(checkpoint: LoadedCheckpoint, latents: Tensor) -> list[np.ndarray | None]:
    """An image of each of the latents; None where they are no numbers."""
    sound = finite_rows(latents)
    images = iter(decode(checkpoint, latents[sound]) if bool(sound.any()) else ())
    return [next(images) if is_sound else None for is_sound in sound.tolist()]


def _info(
    request: SampleRequest, setup: _Setup, prompt: str, seed: int, model_hash: str
) -> ImageInfo:
    return ImageInfo(
        prompt=prompt,
        seed=seed,
        width=setup.size[0],
        height=setup.size[1],
        steps=len(setup.sigmas) - 1,
        guidance_scale=setup.guidance.scale,
        negative=request.negative,
        sampler="Euler",
        schedule="Simple",
        model=model_name(setup.checkpoint.path),
        model_hash=model_hash,
        clip_skip=setup.clip_skip if setup.checkpoint.family.text.clip_skip else None,
        loras=setup.loras,
        extra={"RNG": "CPU"},  # as A1111 names where the initial noise comes from
        version=f"DP-DMD Studio {__version__}",
    )

"""Images of a checkpoint, with or without a LoRA: the `sample` command."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, tensor

from ... import __version__
from ...app.config.distill_config import DistillConfig
from ...app.config.request import ModelFiles
from ...app.config.resolutions import choose_resolutions
from ...app.library.home import prompt_cache
from ...core.diffusion.guidance import Guidance
from ...core.diffusion.schedule import few_step_positions
from ...core.errors import OutputError, SettingsError
from ...core.families import family, identify
from ...core.files.hashes import file_hashes, file_sha256
from ...core.files.png_info import PictureInfo, UsedLora, save_png
from ...core.lora.file import LoraFile, check_family, read_lora
from ...core.recipe.merged_loras import merged_lora_notes
from ...core.recipe.recipe import Recipe
from ..device import choose_device, choose_dtype, is_out_of_memory
from ..evaluation.sampling import Trajectory, sample_latents
from ..loading.checkpoint import LoadedCheckpoint, Overrides, apply_lora, load_checkpoint
from ..loading.decoding import decode
from ..loading.lora_merge import WITH_LORA, open_merging
from ..loading.model_files import ZERO_SNR, model_name, text_encoder_files
from ..model.conditioning import Conditioning, PromptPair
from ..text.cache import EncodedPrompts, encode_prompts
from ..toys import encoder
from .open_session import default_guidance

TEACHER_STEPS = 28
log = logging.getLogger("dpdmd_studio.commands")
Job = tuple[tuple[int, int], Path]
"""(prompt number, seed) and where the image goes."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to draw. None takes what the LoRA's recipe says, else the family's default."""

    model: ModelFiles
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    output: Path
    lora: tuple[str, float] | None = None
    with_loras: tuple[tuple[str, float], ...] = ()
    negative: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    resolution: str = ""
    clip_skip: int | None = None
    prediction: str = "auto"
    zero_terminal_snr: str = "auto"
    batch_size: int = 4
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False
    pairs: tuple[tuple[int, int], ...] = ()
    """(prompt number from 0, seed) of each image; empty: every prompt with every seed."""

    def check(self) -> None:
        """Raise SettingsError for numbers outside their range."""
        bounds = (
            ("batch size", self.batch_size, 1, 1024),
            ("steps", self.steps, 1, 1000),
            ("guidance scale", self.guidance_scale, 0, 50),
            ("guidance rescale", self.guidance_rescale, 0, 1),
            ("clip skip", self.clip_skip, 1, 12),
        )
        for name, value, low, high in bounds:
            if value is not None and not low <= value <= high:
                raise SettingsError(f"{name} is {value:g}; expected {low} to {high}.")


@dataclass(frozen=True)
class _Setup:
    """A request with everything that its defaults stood for."""

    checkpoint: LoadedCheckpoint
    sigmas: Tensor
    guidance_scale: float
    clip_skip: int
    size: tuple[int, int]
    loras: tuple[UsedLora, ...] = ()


def sample_images(request: SampleRequest) -> list[Path]:
    """Draw every prompt with every seed and save PNGs that carry their settings; their paths.

    Names are prompt number and seed, such as 001-00000042.png. Nothing is overwritten unasked.

    Raises:
        DPDMDError: whatever is wrong with the files or the settings.
    """
    try:
        return draw_images(request)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SettingsError(
            f"The device ran out of memory ({str(error).splitlines()[0]}). Lower --batch-size or "
            "--resolution; images drawn so far are kept."
        ) from error


def draw_images(request: SampleRequest) -> list[Path]:
    """As `sample_images`, but a lack of memory stays the RuntimeError that it is."""
    request.check()
    encoder.register()
    paths = _paths(request)
    setup = _prepare(request)
    encoded = _encode(request, setup)
    model_hash = ""
    if setup.checkpoint.path.is_file():
        model_hash = file_sha256(setup.checkpoint.path)[:10]
    jobs = list(paths.items())
    started = time.perf_counter()
    done = 0
    while done < len(jobs):
        part = _batch_of(jobs[done : done + request.batch_size], request, encoded)
        images = _draw(request, setup, encoded, [key for key, _ in part])
        for ((number, seed), path), image in zip(part, images, strict=True):
            info = _info(request, setup, request.prompts[number], seed, model_hash)
            save_png(path, Image.fromarray(image), info, overwrite=request.overwrite)
        done += len(part)
        left = (time.perf_counter() - started) / done * (len(jobs) - done)
        log.info("%d of %d images, %.0f s left", done, len(jobs), left)
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
    """Load the model, merge the LoRA, and settle what was left open."""
    lora = read_lora(Path(request.lora[0])) if request.lora else None
    recipe = lora.recipe if lora else None
    others = [open_merging(Path(path), strength) for path, strength in request.with_loras]
    kind = family(identify(Path(request.model.checkpoint)).family)
    for file in [*([lora] if lora else []), *(other.file for other in others)]:
        check_family(file, kind)  # before gigabytes are loaded
    for note in merged_lora_notes(recipe, [o.present() for o in others], how=WITH_LORA):
        log.info("%s", note)
    device = choose_device(request.device)
    asked = None if request.prediction == "auto" else request.prediction
    overrides = Overrides(
        prediction=asked or (recipe.prediction if recipe else None),
        zero_terminal_snr=_zero_snr(request, recipe),
        text_encoders=text_encoder_files(request.model),
        vae=Path(request.model.vae) if request.model.vae else None,
        loras=others,
    )
    checkpoint = load_checkpoint(
        Path(request.model.checkpoint),
        dtype=choose_dtype(request.dtype, device),
        device=device,
        overrides=overrides,
    )
    used = _apply(request, checkpoint, lora)
    used += [other.used() for other in others]
    sizes = DistillConfig(resolution=request.resolution)
    guidance = request.guidance_scale
    if guidance is None:
        guidance = recipe.guidance_scale if recipe else default_guidance(checkpoint)
    return _Setup(
        checkpoint,
        _sigmas(request, recipe, checkpoint),
        guidance,
        request.clip_skip or (recipe.clip_skip if recipe else None) or 1,
        _size(sizes, recipe, checkpoint),
        tuple(used),
    )


def _apply(
    request: SampleRequest, checkpoint: LoadedCheckpoint, lora: LoraFile | None
) -> list[UsedLora]:
    if lora is None or request.lora is None:
        return []
    apply_lora(checkpoint, lora, request.lora[1])
    if lora.text_encoder_keys:
        count = len(lora.text_encoder_keys)
        log.info("%d text-encoder tensors of %s are not applied.", count, lora.path.name)
    autov3 = file_hashes(lora.path).autov3
    return [UsedLora(name=lora.path.stem, strength=request.lora[1], autov3=autov3)]


def _zero_snr(request: SampleRequest, recipe: Recipe | None) -> bool | None:
    """The setting's, else the recipe's where its prediction is used; None: what the file says."""
    if request.zero_terminal_snr != "auto" or recipe is None or recipe.prediction != "v":
        return ZERO_SNR[request.zero_terminal_snr]
    return recipe.zero_terminal_snr if request.prediction in ("auto", "v") else None


def _sigmas(request: SampleRequest, recipe: Recipe | None, checkpoint: LoadedCheckpoint) -> Tensor:
    """The recipe's exact grid at the recipe's steps, else the family's even grid."""
    if recipe is not None and request.steps in (None, recipe.num_steps):
        return tensor(recipe.sigmas)
    if recipe is not None:
        log.info("This LoRA was trained for %d steps, not %d.", recipe.num_steps, request.steps)
    elif request.lora is not None and request.steps is None:
        log.info(
            "This LoRA holds no recipe; 4 steps without guidance are usual for few-step LoRAs."
        )
    steps = request.steps or TEACHER_STEPS
    return checkpoint.schedule.sigma_at(few_step_positions(steps))


def _size(
    asked: DistillConfig, recipe: Recipe | None, checkpoint: LoadedCheckpoint
) -> tuple[int, int]:
    if not asked.resolution and recipe is not None and recipe.resolutions:
        return recipe.resolutions[0]
    return choose_resolutions(asked, checkpoint.detection)[0]


def _encode(request: SampleRequest, setup: _Setup) -> EncodedPrompts:
    return encode_prompts(
        setup.checkpoint,
        [*request.prompts, request.negative],
        clip_skip=setup.clip_skip,
        cache_folder=prompt_cache(),
    )


def _draw(
    request: SampleRequest,
    setup: _Setup,
    encoded: EncodedPrompts,
    keys: list[tuple[int, int]],
) -> list[np.ndarray]:
    width, height = setup.size
    prompts = Conditioning.cat([encoded[request.prompts[number]] for number, _ in keys])
    guidance = Guidance(setup.guidance_scale, request.guidance_rescale)
    latents = sample_latents(
        setup.checkpoint.call(),
        PromptPair.of(prompts, encoded[request.negative]),
        [seed for _, seed in keys],
        (setup.checkpoint.detection.latent_channels, height // 8, width // 8),
        Trajectory(setup.sigmas, guidance),
    )
    return list(decode(setup.checkpoint, latents))


def _info(
    request: SampleRequest, setup: _Setup, prompt: str, seed: int, model_hash: str
) -> PictureInfo:
    return PictureInfo(
        prompt=prompt,
        seed=seed,
        width=setup.size[0],
        height=setup.size[1],
        steps=len(setup.sigmas) - 1,
        guidance_scale=setup.guidance_scale,
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

"""The parts of a check: what each of them measures with the model at hand."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ...app.config.distill_config import DistillConfig
from ...app.config.request import DistillRequest, ModelFiles, TeacherLora, asked_sampling
from ...app.estimate import arithmetic_memory, bytes_in_16_bit
from ...app.library.home import prompt_cache
from ...app.report.images import image_grid
from ...app.runs.checks import FEW_STEPS_SHEET, TEACHER_SHEET, CheckDirectory
from ...app.runs.directory import METRICS, RunDirectory
from ...core.diffusion.guidance import NO_GUIDANCE, Guidance
from ...core.diffusion.schedule import few_step_positions
from ...core.errors import NonFiniteError
from ...core.families import family
from ...core.files import atomic_write
from ..device import (
    DTYPES,
    choose_device,
    describe_device,
    device_memory,
    dtype_name,
    free_computer_memory,
    free_memory,
    release_memory,
)
from ..evaluation import checkup
from ..evaluation.checkup import Material, Reference
from ..evaluation.run_evaluation import teacher_levels
from ..evaluation.sampling import Trajectory
from ..loading.checkpoint import OpenedCheckpoint, Overrides, open_checkpoint
from ..loading.number_format import number_formats
from ..loading.teacher_loras import open_teacher_loras
from ..loading.weights import Component
from ..memory.live_bytes import peak_bytes
from ..model.conditioning import PromptPair
from ..text.cache import encode_prompts
from ..training.session import Session
from .open_session import open_session

SEEDS = (1_000_001, 1_000_002)
COMMON_STEPS, PLAIN_STEPS = 4, 28
TIMED_UPDATES, WARMING_UPDATES = 5, 1
UPDATE_PASSES = 39
"""What an update costs in forward passes of an image, by count (docs/performance.md)."""
ROOM = 1.15
"""Memory that a network needs to be called on a small image, as a multiple of its weights'."""
REFERENCE = "float32.safetensors"
log = logging.getLogger("dpdmd_studio.commands")
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """What to check.

    Attributes:
        config: the settings that a run would have.
        teacher_loras: merged into the teacher.
        prompts: the first two are drawn; none: two of our own.
        again: whether finished parts are done anew.
    """

    model: ModelFiles
    config: DistillConfig
    teacher_loras: tuple[TeacherLora, ...] = ()
    prompts: tuple[str, ...] = ()
    again: bool = False

    def as_run(self, output: Path) -> DistillRequest:
        """The run that is checked."""
        return DistillRequest(
            model=self.model,
            config=self.config,
            teacher_loras=self.teacher_loras,
            output=str(output),
        )


@dataclass(frozen=True)
class Part:
    """One part of a check.

    Attributes:
        weight: about what it costs, in forward passes of an image.
    """

    name: str
    title: str
    weight: float
    work: Callable[[], Figures]


class NotMeasuredError(Exception):
    """A part cannot be done here; says why."""


class Checkup:
    """The parts of a check, and what they share: the model stays loaded from one to the next."""

    def __init__(self, request: CheckRequest, folder: CheckDirectory, figures: Figures) -> None:
        self.request, self.folder, self.figures = request, folder, figures
        self.device = choose_device(request.config.device)
        self._session: Session | None = None
        self._failed = ""
        self._pair: PromptPair | None = None

    def parts(self) -> list[Part]:
        """All parts in their order: those with the loaded session before the number formats."""
        images = len(self.request.prompts) * len(SEEDS)
        batch = self.request.config.batch_size
        counting = 1 if self.device.type in ("cuda", "xpu") else 2
        update = UPDATE_PASSES * batch
        return [
            Part("encoding", "Encoding prompts", 5, self._encoding),
            Part("loading", "Loading the model", 10, self._loading),
            Part("adapters", "Comparing an untrained LoRA with the teacher", 6, self._adapters),
            Part("picture", "Drawing the teacher's images", 2 * 28 * images, self._picture),
            Part("few_steps", "Drawing plain steps", 48 * images, self._few_steps),
            Part("updates", "Timing updates", (TIMED_UPDATES + WARMING_UPDATES) * update,
                 self._updates),
            Part("memory", "Measuring the memory of an update", counting * update, self._memory),
            Part("float32", "Number format: float32", 10, self._exact),
            Part("bfloat16", "Number format: bfloat16", 10, partial(self._format, "bfloat16")),
            Part("float16", "Number format: float16", 10, partial(self._format, "float16")),
        ]  # fmt: skip

    # With the model as a run has it

    def _encoding(self) -> Figures:
        """Prompts go through the text encoders though they may have been encoded before."""
        opened = self._open(self._formats()[0])
        cache = self.folder.path / "prompts"
        shutil.rmtree(cache, ignore_errors=True)
        with peak_bytes(self.device) as peak:
            encode_prompts(
                opened, self._texts(), clip_skip=self._config.clip_skip, cache_folder=cache
            )
        prompt_cache().mkdir(parents=True, exist_ok=True)
        for file in cache.iterdir():
            file.replace(prompt_cache() / file.name)
        shutil.rmtree(cache, ignore_errors=True)
        return {"peak": peak()}

    def _loading(self) -> Figures:
        self._session = None
        with peak_bytes(self.device) as peak:
            session = self._loaded()
        weights = session.call.network.parameters()
        own = sum(
            p.numel() * p.element_size() for p in weights if p.device.type == self.device.type
        )
        guidance = session.teacher.guidance
        return {
            "peak": max(peak(), own),
            "dtype": dtype_name(session.call.dtype),
            "device": describe_device(self.device),
            "title": session.checkpoint.detection.title,
            "guidance": guidance.scale,
            "rescale": guidance.rescale,
        }

    def _adapters(self) -> Figures:
        return checkup.untrained_difference(self._loaded())

    def _picture(self) -> Figures:
        session = self._loaded()
        trajectory = Trajectory(teacher_levels(session), session.teacher.guidance)
        found: Figures = {
            "steps": len(trajectory.sigmas) - 1,
            "guidance": trajectory.guidance.scale,
            "decoder": "",
            "rough": session.checkpoint.decoder is None,
            "only": len(session.checkpoint.family.sampling.predictions) == 1,
        }
        with peak_bytes(self.device, _resident(session)) as peak:
            latents = checkup.draw(session, self._material(session), trajectory, _told("drawn"))
        found |= {"drawing": peak(), "finite": bool(torch.isfinite(latents).all())}
        if not found["finite"]:
            return found
        with peak_bytes(self.device, _resident(session)) as peak:
            images, found["decoder"] = checkup.decoded(session.checkpoint, latents)
        found["decoding"] = peak()
        self._save(TEACHER_SHEET, images)
        rows = self._material(session).rows
        near = checkup.denoised(session.call, rows, latents, (checkup.LITTLE_NOISE,))
        return found | {"agreement": near.correlation} | checkup.picture_figures(latents, images)

    def _few_steps(self) -> Figures:
        session = self._loaded()
        material, schedule = self._material(session), session.call.schedule
        few = schedule.sigma_at(few_step_positions(COMMON_STEPS))
        latents = checkup.draw(session, material, Trajectory(few), _told("drawn in few steps"))
        if bool(torch.isfinite(latents).all()):
            images, _ = checkup.decoded(session.checkpoint, latents)
            self._save(FEW_STEPS_SHEET, images)
        many = schedule.sigma_at(few_step_positions(PLAIN_STEPS))
        plain = checkup.draw(session, material, Trajectory(many, NO_GUIDANCE), _told("drawn"))
        if not bool(torch.isfinite(plain).all()):
            raise NotMeasuredError("images without guidance are NaN or infinity")
        far = checkup.denoised(session.call, material.rows, plain, checkup.MUCH_NOISE)
        if not math.isfinite(far.hedging):
            raise NotMeasuredError("the network gives NaN or infinity without guidance")
        return {
            "hedging": far.hedging,
            "uncertain": far.hedging_error,
            "steps": COMMON_STEPS,
        }

    def _updates(self) -> Figures:
        session, run = self._loaded(), RunDirectory.open(self.folder.run)
        (run.path / METRICS).unlink(missing_ok=True)
        trainer, device = session.trainer, self.device
        module: Any = getattr(torch, device.type, None)
        synchronize: Callable[[], object] = getattr(module, "synchronize", lambda: None)
        if device.type in ("cuda", "xpu"):
            module.reset_peak_memory_stats(device)
        seconds = []
        for number in range(WARMING_UPDATES + TIMED_UPDATES):
            started = time.perf_counter()
            metrics = trainer.update()
            synchronize()
            each = time.perf_counter() - started
            if number < WARMING_UPDATES:
                continue
            seconds.append(each)
            line = {"step": trainer.step, "seconds": round(each, 4), **metrics}
            if device.type in ("cuda", "xpu"):
                line["memory_bytes"] = float(module.max_memory_allocated(device))
                line["device_memory_bytes"] = float(device_memory(device) or 0)
            run.append_metrics(line)
            log.info("update %d of %d: %.2f s", len(seconds), TIMED_UPDATES, each)
        return {"seconds": seconds}

    def _memory(self) -> Figures:
        session, config = self._loaded(), self._config
        detection = session.checkpoint.detection
        half = bytes_in_16_bit(session.checkpoint.path)
        found = checkup.stages_of_update(session)
        in_force = replace(session.config, dtype=dtype_name(session.call.dtype))
        changed = [
            f"--{name.replace('_', '-')} {value}"
            for name, value in session.config.to_dict().items()
            if value != getattr(config, name) and name != "guidance_rescale"
        ]
        share = half / (2 * family(detection.family).cost_of(detection.title).parameters)
        expected = arithmetic_memory(detection, in_force, half).peak
        return found | {"estimate": expected, "share": share, "fallbacks": changed}

    def _loaded(self) -> Session:
        """The session of the run, opened once.

        Raises:
            NotMeasuredError: that failed before.
            NonFiniteError: the weights are no numbers.
        """
        if self._failed:
            raise NotMeasuredError(self._failed)
        if self._session is None:
            self._failed = "the model could not be loaded"
            self._session = open_session(RunDirectory.open(self.folder.run))
            self._failed = ""
        return self._session

    # Number formats, each network by itself

    def _exact(self) -> Figures:
        guidance, prompts = self._guidance(), self._prompts()
        with self._network("float32") as checkpoint:
            positions = few_step_positions(self._config.num_steps)[:2]
            shape = checkup.format_shape(checkpoint)
            with torch.backends.cudnn.flags(allow_tf32=False):
                exact = checkup.reference(checkpoint.call(), shape, prompts, guidance, positions)
            if not bool(torch.isfinite(exact.x0).all()):
                raise NonFiniteError("The network gives NaN or infinity in float32, too.")
            where = str(checkpoint.device)
        tensors = {"states": exact.states, "x0": exact.x0, "timesteps": exact.timesteps}
        save_file(tensors, self.folder.path / REFERENCE)
        return {"device": where}

    def _format(self, kind: str) -> Figures:
        file = self.folder.path / REFERENCE
        exact = self.figures.get("float32", {})
        if "error" in exact or not file.exists():
            why = exact.get("error", "it is not there")
            raise NotMeasuredError(f"no float32 to compare with: {why}")
        _try_format(kind, self.device)
        reference, guidance, prompts = (
            Reference(**load_file(file)),
            self._guidance(),
            self._prompts(),
        )
        positions = few_step_positions(self._config.num_steps)[:2]
        try:
            with self._network(kind) as checkpoint:
                return checkup.format_errors(
                    checkpoint.call(), reference, prompts, guidance, positions
                )
        except NonFiniteError:  # of the weights
            return {"finite": False, "errors": {"any": checkup.NO_NUMBER}}

    @contextlib.contextmanager
    def _network(self, kind: str) -> Iterator[Any]:
        """The checkpoint loaded in a number format, where there is room for it."""
        self._session = None
        release_memory(self.device)
        opened = self._open(DTYPES[kind])
        place = _place(opened.denoiser, DTYPES[kind], self.device)
        if place is not self.device:
            log.info("The device has too little memory free for it: the CPU does it.")
            opened = self._open(DTYPES[kind], place)
        yield opened.load()
        del opened
        release_memory(self.device)

    def _prompts(self) -> PromptPair:
        """The first prompt and the negative one as they are in float32."""
        if self._pair is not None:
            return self._pair
        opened = self._open(self._formats()[0])
        encoded = encode_prompts(
            opened, self._texts(), clip_skip=self._config.clip_skip, cache_folder=prompt_cache()
        )
        negative = encoded[self._config.teacher_negative]
        if self._config.zero_negative:
            negative = negative.zeros()
        pair = (encoded[self.request.prompts[0]], negative)
        self._pair = PromptPair(*(one.to(dtype=torch.float32) for one in pair))
        return self._pair

    def _guidance(self) -> Guidance:
        loaded = self.figures.get("loading", {})
        if "error" in loaded or not loaded:
            raise NotMeasuredError("the model could not be loaded")
        return Guidance(loaded["guidance"], loaded["rescale"])

    # What several parts need

    @property
    def _config(self) -> DistillConfig:
        return self.request.config

    def _texts(self) -> list[str]:
        return list(dict.fromkeys([*self.request.prompts, self._config.teacher_negative]))

    def _formats(self) -> tuple[torch.dtype, ...]:
        config = self._config
        asked = asked_sampling(config.prediction, config.zero_terminal_snr, config.shift)
        path = Path(self.request.model.checkpoint)
        return number_formats(config.dtype, self.device, path, asked)

    def _open(self, dtype: torch.dtype, device: torch.device | None = None) -> OpenedCheckpoint:
        config, model = self._config, self.request.model
        asked = asked_sampling(config.prediction, config.zero_terminal_snr, config.shift)
        loras = open_teacher_loras(self.request.as_run(Path("unused")))
        return open_checkpoint(
            Path(model.checkpoint),
            dtype=dtype,
            device=device or self.device,
            overrides=Overrides.of(model, asked, loras),
        )

    def _material(self, session: Session) -> Material:
        prompts = [session.encoded[text] for text in self.request.prompts]
        return Material(prompts, session.negative, SEEDS)

    def _save(self, name: str, images: Any) -> None:
        """A sheet with a row for each prompt."""
        count = len(SEEDS)
        rows = [
            (text[:100], images[count * row : count * (row + 1)])
            for row, text in enumerate(self.request.prompts)
        ]
        with atomic_write.atomic_path(self.folder.path / name) as temporary:
            sheet: Image.Image = image_grid(rows)
            sheet.save(temporary, format="PNG")


def _resident(session: Session) -> list[torch.Tensor]:
    """What lies in memory while images are drawn during a run."""
    network, found = session.call.network, []
    for optimizer in session.trainer.optimizers.values():
        for state in optimizer.state.values():
            found += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return [*network.parameters(), *network.buffers(), *found]


def _told(what: str) -> Callable[[int, int], None]:
    """Says how many images are done."""

    def watch(done: int, total: int) -> None:
        log.info("%d of %d images %s", done, total, what)

    return watch


def _try_format(kind: str, device: torch.device) -> None:
    """Raise NotMeasuredError where the device does not compute in a number format."""
    try:
        x = torch.ones(1, 8, 8, 8, device=device, dtype=DTYPES[kind])
        w = torch.ones(8, 8, 3, 3, device=device, dtype=DTYPES[kind])
        torch.nn.functional.conv2d(x, w).sum().item()
    except (RuntimeError, NotImplementedError) as error:
        raise NotMeasuredError(f"{device.type} does not compute in it") from error


def _place(component: Component, dtype: torch.dtype, device: torch.device) -> torch.device:
    """The device if it has room for a network, else the CPU.

    Raises:
        NotMeasuredError: the CPU has no room either.
    """
    needed = ROOM * component.num_bytes(dtype)
    free = free_memory(device)
    if device.type != "cpu" and (free is None or needed <= free):
        return device
    room = free_computer_memory()
    if room is not None and needed > room:
        raise NotMeasuredError(
            f"the network takes {needed / 2**30:.1f} GiB in {dtype_name(dtype)}, and neither the "
            "device nor the computer has that much free"
        )
    return device if device.type == "cpu" else torch.device("cpu")

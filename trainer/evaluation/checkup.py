"""What `check` measures on a device; `app/findings/checkup.py` says what the figures mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)

from ...core.diffusion.guidance import NO_GUIDANCE, Guidance
from ...core.diffusion.prediction import to_x0
from ...core.diffusion.schedule import Levels
from ...core.errors import NonFiniteError
from ..loading.checkpoint import LoadedCheckpoint
from ..loading.decoding import linear_preview, vae_images
from ..memory.live_bytes import peak_bytes
from ..memory.portions import Portions
from ..model.conditioning import Conditioning, PromptPair
from ..model.network import NetworkCall, guided
from ..training.session import Session
from .sampling import Trajectory, sample_latents

Figures = dict[str, Any]
"""JSON-ready."""
LITTLE_NOISE, MUCH_NOISE = 249, (900, 749)
"""Positions: where a picture is hardly disturbed, and where little of it is left."""
DRAWS = 2
"""Of noise, for each image and position."""
BLOCK = 8
"""Pixels along a side of what one latent pixel stands for."""
FORMAT_PIXELS = 256
"""Side of the image at which number formats are compared: twice the network may have to fit."""
SEED = 0
TINY = 1e-12
NO_NUMBER = 1e9
"""Stands for NaN and infinity, which JSON has not."""


@dataclass(frozen=True)
class Material:
    """Images to draw: every prompt with every seed.

    Attributes:
        prompts: conditioning of each, batch size 1.
        negative: the teacher's unconditional input, batch size 1.
    """

    prompts: Sequence[Conditioning]
    negative: Conditioning
    seeds: Sequence[int]

    @property
    def rows(self) -> list[Conditioning]:
        """The conditioning of each image, a prompt's seeds beside each other."""
        return [prompt for prompt in self.prompts for _ in self.seeds]


def draw(
    session: Session,
    material: Material,
    trajectory: Trajectory,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The teacher's latents, float32 on the CPU, (prompts * seeds, C, h, w).

    As many at once as fit.

    Args:
        watch: is told how many of how many images are drawn.
    """
    session.roles.use("teacher")
    call, is_guided = session.call, not trajectory.guidance.is_off
    portions = Portions(call.device, len(material.seeds))
    found: list[Tensor] = []
    total = len(material.prompts) * len(material.seeds)
    for prompt in material.prompts:
        left = list(material.seeds)
        while left:
            part = left[: portions.size(guided=is_guided)]
            pair = PromptPair.of(Conditioning.cat([prompt] * len(part)), material.negative)
            shape = session.latent_shapes[0]
            work = partial(sample_latents, call, pair, part, shape, trajectory)
            latents = portions.attempt(len(part), work, guided=is_guided)
            if latents is not None:
                found.append(latents)
                left = left[len(part) :]
                watch(sum(map(len, found)), total)
    return torch.cat(found)


def decoded(checkpoint: LoadedCheckpoint, latents: Tensor) -> tuple[np.ndarray, str]:
    """(images, what is wrong with the decoder or ""), uint8 (B, H, W, 3) of finite latents."""
    wrong = ""
    if checkpoint.decoder is not None:
        try:
            return vae_images(checkpoint, checkpoint.decoder, latents), ""
        except NonFiniteError as error:
            wrong = str(error)
    rgb = linear_preview(checkpoint, latents).clamp(-1, 1).add(1).mul(127.5).round()
    return rgb.to(torch.uint8).permute(0, 2, 3, 1).numpy(), wrong


def picture_figures(latents: Tensor, images: np.ndarray) -> Figures:
    """How much latents (B, C, h, w) and images uint8 (B, H, W, 3) look like pictures."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return {
        "size": float(latents.square().mean().sqrt()),
        "contrast": float(pixels.flatten(1).std(dim=1).mean()),
        "smoothness": neighbours(F.avg_pool2d(pixels, BLOCK)),
    }


def neighbours(images: Tensor) -> float:
    """Correlation of neighbouring pixels of (B, C, H, W), by channel; 1 where all are alike."""
    x = images - images.mean(dim=(2, 3), keepdim=True)
    pairs = ((x[..., 1:, :], x[..., :-1, :]), (x[..., 1:], x[..., :-1]))
    shared = sum(float((one * other).sum()) for one, other in pairs)
    whole = sum(float((one.square() + other.square()).sum()) / 2 for one, other in pairs)
    return shared / whole if whole else 1.0


@dataclass(frozen=True)
class Denoised:
    """Second moments of images x0 and what a network makes of them under noise.

    Attributes:
        moments: E|x0|^2, E|D|^2 and E<D, x0> of each image, (images, 3).
    """

    moments: np.ndarray

    @property
    def correlation(self) -> float:
        """1 where the network finds the images again, 0 where it gives NaN."""
        of_images, of_found, shared = self.moments.sum(axis=0)
        found = float(shared / max(TINY, (of_images * of_found) ** 0.5))
        return found if math.isfinite(found) else 0.0

    @property
    def hedging(self) -> float:
        """(E|x0|^2 - E|D|^2) / E|x0 - D|^2: 1 for the mean of all that fit, 0 for one of them.

        The mean is orthogonal to its error, so that it has less contrast than an image by just its
        error. That holds for any data, however easy, and at any level.
        """
        return _hedging(self.moments)

    @property
    def hedging_error(self) -> float:
        """Standard error of `hedging` between images (jackknife)."""
        count = len(self.moments)
        without = [_hedging(np.delete(self.moments, row, axis=0)) for row in range(count)]
        return float(np.std(without) * (count - 1) ** 0.5)


def _hedging(moments: np.ndarray) -> float:
    of_images, of_found, shared = moments.sum(axis=0)
    return float((of_images - of_found) / max(TINY, of_images - 2 * shared + of_found))


@torch.no_grad()
def denoised(
    call: NetworkCall, rows: Sequence[Conditioning], latents: Tensor, positions: Sequence[int]
) -> Denoised:
    """Latents (B, C, h, w) are noised to these positions and denoised without guidance, one by one.

    The moments are of all but each image's mean colour, which a few images tell little of.

    Args:
        rows: conditioning of each image, batch size 1.
    """
    generator = torch.Generator().manual_seed(SEED)
    level = Levels.at_positions(call.schedule, torch.tensor(positions, dtype=torch.float64))
    moments = np.zeros((len(latents), 3))
    for number, (x0, row) in enumerate(zip(latents[:, None], rows, strict=True)):
        x = x0 - x0.mean(dim=(2, 3), keepdim=True)
        for index in range(len(positions)):
            alpha, std = level[index].broadcast_scales
            for _ in range(DRAWS):
                x_t = alpha * x0 + std * torch.randn(x0.shape, generator=generator)
                found = _x0(call, x_t, level[index], PromptPair(row, row), NO_GUIDANCE).cpu()
                d = found - found.mean(dim=(2, 3), keepdim=True)
                moments[number] += [float((a * b).sum()) for a, b in ((x, x), (d, d), (d, x))]
    return Denoised(moments)


def _x0(
    call: NetworkCall, x_t: Tensor, level: Levels, prompts: PromptPair, guidance: Guidance
) -> Tensor:
    """What the network takes x_t (B, C, h, w) at one level for, on its device."""
    at = level.map(lambda value: value.to(call.device))
    alpha, std = at.broadcast_scales
    x_t = x_t.to(call.device)
    timesteps = at.timesteps.expand(len(x_t))
    output = guided(call, x_t, timesteps, prompts.to(call.device), guidance)
    return to_x0(call.prediction, output, x_t, alpha, std)


@torch.no_grad()
def untrained_difference(session: Session) -> Figures:
    """How far the outputs of both adapters as they begin are from the teacher's, at two levels."""
    call, batch = session.call, session.trainer.batches.batch("student", 1)
    x_t = batch.noise.to(call.device)
    told = batch.prompts.conditional.to(call.device)
    level = session.trainer.grids.student
    largest, size = 0.0, 0.0
    for index in (0, 1):
        timesteps = level.timesteps[index].expand(len(x_t))
        outputs = {}
        for role in ("teacher", "student", "fake"):
            session.roles.use(role)
            outputs[role] = call(x_t, timesteps, told)
        size = max(size, float(outputs["teacher"].abs().max()))
        for role in ("student", "fake"):
            apart = float((outputs[role] - outputs["teacher"]).abs().max())
            largest = max(largest, apart if math.isfinite(apart) else NO_NUMBER)
    size = size if math.isfinite(size) else 0.0
    return {"largest": largest, "size": size, "rounding": torch.finfo(call.dtype).eps}


def stages_of_update(session: Session) -> Figures:
    """Peak bytes of a student update, a fake-score update and an optimizer's step.

    Nothing is learned. On CUDA and XPU as allocated; elsewhere counted.
    """
    trainer, device = session.trainer, session.call.device
    network = session.call.network
    there = [*network.parameters(), *network.buffers()]
    for optimizer in trainer.optimizers.values():
        there += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    batch = trainer.batches.batch("student", 1).to(device)
    with peak_bytes(device, there) as peak:
        _, samples = trainer.gradients.student(batch, trainer.batches.generator("check", 1), 1)
    found = {"student": peak()}
    with peak_bytes(device, [*there, *_gradients(session, "student")]) as peak:
        _step(session, "student")
    found["optimizer"] = peak()
    with peak_bytes(device, there) as peak:
        trainer.gradients.fake(samples, trainer.batches.generator("check", 2))
    found["fake"] = peak()
    trainer.optimizers["fake"].zero_grad()
    return found


def _gradients(session: Session, role: str) -> list[Tensor]:
    return [p.grad for p in session.roles.parameters(role) if p.grad is not None]


def _step(session: Session, role: str) -> None:
    """An optimizer's step with a learning rate of 0."""
    optimizer = session.trainer.optimizers[role]
    norm = torch.nn.utils.clip_grad_norm_(session.roles.parameters(role), 1.0)
    finite = torch.isfinite(norm)
    optimizer.prepare()
    if optimizer.checks_itself or bool(finite):
        optimizer.step(0.0, finite)
    else:
        optimizer.zero_grad()


@dataclass(frozen=True)
class Reference:
    """A small image's way through the noisiest levels in float32.

    Attributes:
        states: x_t of each level, (L, C, h, w).
        x0: what is found of them with guidance, likewise.
        timesteps: (L,).
    """

    states: Tensor
    x0: Tensor
    timesteps: Tensor


def format_shape(checkpoint: LoadedCheckpoint) -> tuple[int, int, int]:
    """(C, h, w) of the small image."""
    detection = checkpoint.detection
    step = detection.resolution_multiple
    side = max(step, min(detection.resolution, FORMAT_PIXELS) // step * step) // 8
    return detection.latent_channels, side, side


@torch.no_grad()
def reference(
    call: NetworkCall, shape: tuple[int, int, int], prompts: PromptPair, guidance: Guidance,
    positions: Tensor,
) -> Reference:  # fmt: skip
    """x0 at these positions, the noisiest first: of noise, then of what was found with new noise.

    Args:
        prompts: batch size 1.
    """
    generator = torch.Generator().manual_seed(SEED)
    levels = Levels.at_positions(call.schedule, positions)
    states, found = [], []
    x0 = torch.zeros(1, *shape)
    for index in range(len(positions)):
        alpha, std = levels[index].broadcast_scales
        x_t = alpha * x0 + std * torch.randn(1, *shape, generator=generator)
        states.append(x_t)
        x0 = _x0(call, x_t, levels[index], prompts, guidance).cpu()
        found.append(x0)
        x0 = x0 / x0.square().mean().sqrt().clamp_min(1.0)
    return Reference(torch.cat(states), torch.cat(found), levels.timesteps)


@torch.no_grad()
def format_errors(
    call: NetworkCall, exact: Reference, prompts: PromptPair, guidance: Guidance,
    positions: Tensor,
) -> Figures:  # fmt: skip
    """Errors of x0 from the same states, root mean square as a share of the exact one's."""
    levels = Levels.at_positions(call.schedule, positions)
    errors, finite = {}, True
    for index, x_t in enumerate(exact.states):
        found = _x0(call, x_t[None], levels[index], prompts, guidance).cpu()
        apart, whole = found - exact.x0[index], exact.x0[index]
        finite = finite and bool(torch.isfinite(found).all())
        share = float(apart.square().mean().sqrt() / whole.square().mean().sqrt().clamp_min(TINY))
        errors[f"{float(exact.timesteps[index]):.0f}"] = (
            share if math.isfinite(share) else NO_NUMBER
        )
    return {"finite": finite, "errors": errors}

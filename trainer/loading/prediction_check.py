"""Whether a network predicts what its files or the user say, by a few forward passes.

At the highest timestep the input is noise: x_t = alpha * x0 + std * eps with alpha = 0.068 (VP), or
eps alone (flow).

- An eps network returns that noise: the correlation r of output and input is about
  1 - alpha^2 var(x0) / 2, above 0.99 for anything trained. A flow network returns eps - x0_hat,
  mostly above 0.9, too.
- A v network returns alpha * eps - std * x0_hat: r is about alpha / sqrt(alpha^2 + std(x0_hat)^2),
  0.07 to 0.2. What is left, x0_hat, is the mean of all images a prompt can mean, hence smooth:
  neighbouring latent pixels are nearly equal.

So r > 0.9 contradicts v. A low r alone contradicts nothing, for an untrained or toy network has it
too; only a low r together with a smooth output, which no untrained network makes of white noise,
contradicts eps and flow. Measured on random networks: |r| < 0.05, smoothness between -0.4 and 0.4.

Between eps and flow, levels in the middle tell. The input is a smooth picture x0 with noise as a
flow has it, (1 - s) * x0 + s * eps at timestep 1000 * s, of which any denoiser finds the picture. A
flow network returns eps - x0, so that the picture's share in its output is -1. An eps network
returns no picture: its share is 0. A v network of the VP schedule has -std(t) * (1 - s) / alpha(t),
but is known by the highest timestep. The amplitude of the noise would not tell: networks that
normalise what they see return it at its usual size, however much of it there is. What lies between
the two passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.diffusion.schedule import Levels, VPSchedule
from ...core.errors import CheckpointError
from ..model.conditioning import Conditioning
from .checkpoint import LoadedCheckpoint

EPS_CORRELATION = 0.9
V_CORRELATION = 0.5
SMOOTHNESS = 0.8
HIGHEST_TIMESTEP = 999.0
MIDDLE = (0.25, 0.4, 0.55)
"""Noise levels of a flow at which eps and flow are compared."""
FLOW_SHARE, EPS_SHARE = -0.6, 0.25
"""Mean share of the picture: at most this is a flow, at most this, either way, is eps."""
MAX_LATENT_SIZE = 64
MIN_LATENT_SIZE = 16
"""Below this an image is too small to call smooth."""
SEED = 0
SCHEDULE = VPSchedule()


@torch.no_grad()
def check_prediction_type(checkpoint: LoadedCheckpoint, conditioning: Conditioning) -> None:
    """Compare a few forward passes with the prediction type in force.

    Networks of families that predict one thing alone pass unseen.

    Args:
        checkpoint: a loaded checkpoint.
        conditioning: any prompt, best the empty one; its first entry is used.

    Raises:
        CheckpointError: the network clearly predicts another type.
    """
    claimed, allowed = checkpoint.detection.prediction, checkpoint.family.sampling.predictions
    if len(allowed) == 1:
        return
    size = min(checkpoint.detection.resolution // 8, MAX_LATENT_SIZE)
    shape = (1, checkpoint.detection.latent_channels, size, size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    call = checkpoint.call()
    first = conditioning.index(slice(0, 1)).to(checkpoint.device)

    def output(x_t: Tensor, timestep: float) -> Tensor:
        steps = torch.tensor([timestep])
        return call(x_t.to(checkpoint.device), steps.to(checkpoint.device), first).cpu()

    top = output(noise, HIGHEST_TIMESTEP)
    r = correlation(top, noise)
    found, measured = (
        clear_prediction(top, noise),
        f"correlation with its input at timestep 999: {r:.2f}",
    )
    if r > V_CORRELATION:  # no v: a flow, or eps if r is as high as that has it
        picture = smooth_picture(shape)
        mixed = [output((1 - s) * picture + s * noise, 1000 * s) for s in MIDDLE]
        shares = [picture_share(each, picture) for each in mixed]
        told = middle_prediction(shares)
        if claimed == "v":
            found = found and (told or found)
        else:
            found = told if found or told == "flow" else None
        measured += f"; {_described(shares)}"
    if found is None or found == claimed:
        return
    advice = f"Set --prediction {found}." if found in allowed else (
        f"Models of {checkpoint.family.label} that predict {' or '.join(allowed)} are supported."
    )  # fmt: skip
    raise CheckpointError(
        f"{checkpoint.path.name} is taken as a {claimed!r} model, but its output is "
        f"clearly that of a {found!r} model ({measured}). {advice}"
    )


def clear_prediction(output: Tensor, noise: Tensor) -> str | None:
    """ "eps" or "v" where the output at the highest timestep leaves no doubt, else None.

    What is not v may be "flow" as well as "eps" there.

    Args:
        output: raw prediction, (1, C, h, w).
        noise: the network's input, same shape.
    """
    r = correlation(output, noise)
    if r > EPS_CORRELATION:
        return "eps"
    large = min(output.shape[-2:]) >= MIN_LATENT_SIZE
    if r < V_CORRELATION and large and smoothness(output) > SMOOTHNESS:
        return "v"
    return None


def smooth_picture(shape: tuple[int, int, int, int]) -> Tensor:
    """Ramps from -1 to 1 in several directions, each channel's mean 0."""
    _, channels, height, width = shape
    across = torch.linspace(-1, 1, width).expand(height, width)
    down = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    kinds = (across, down, 3**0.5 * across * down, -across)
    return torch.stack([kinds[index % len(kinds)] for index in range(channels)])[None]


def picture_share(output: Tensor, picture: Tensor) -> float:
    """How much of the picture the output holds, by least squares."""
    return float((output * picture).sum() / (picture * picture).sum())


def middle_prediction(shares: Sequence[float]) -> str | None:
    """ "eps" or "flow" where the levels of `MIDDLE` leave no doubt, else None.

    Args:
        shares: of the picture at each of them.
    """
    mean = sum(shares) / len(shares)
    if mean <= FLOW_SHARE:
        return "flow"
    return "eps" if abs(mean) <= EPS_SHARE else None


def expected_shares(prediction: str) -> list[float]:
    """How much of the picture a network that predicts so returns at the levels of `MIDDLE`."""
    s = torch.tensor(MIDDLE)
    levels = Levels.at_positions(SCHEDULE, 1000 * s)
    v = -levels.stds * (1 - s) / levels.alphas
    return {"flow": -torch.ones_like(s), "eps": torch.zeros_like(s), "v": v}[prediction].tolist()


def _described(shares: Sequence[float]) -> str:
    def listed(values: Sequence[float]) -> str:
        return " ".join(f"{value:.2f}" for value in values)

    kinds = ", ".join(f"{kind} {listed(expected_shares(kind))}" for kind in ("eps", "v", "flow"))
    return (
        f"share of a picture in its output at noise levels {' '.join(map(str, MIDDLE))} "
        f"{listed(shares)}, where {kinds} is expected"
    )


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation over everything but the channels' means; 0 for a constant."""
    a, b = _centred(a), _centred(b)
    norm = (a.norm() * b.norm()).item()
    return (a * b).sum().item() / norm if norm > 0 else 0.0


def smoothness(output: Tensor) -> float:
    """Correlation of horizontally and vertically neighbouring pixels, the smaller of the two."""
    return min(
        correlation(output[..., 1:], output[..., :-1]),
        correlation(output[..., 1:, :], output[..., :-1, :]),
    )


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=(-2, -1), keepdim=True)

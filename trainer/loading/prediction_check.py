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

Between eps and flow, levels in the middle tell. The input s * eps at timestep 1000 * s is what a
flow network sees of a flat grey image at noise level s, so that it returns the noise: its share is
1. An eps network believes that the noise has the larger size std(t) of its own schedule, and
returns s / std(t) of it; a v network alpha(t) times as much. Only differences of neighbouring
pixels are compared, since x0_hat is smooth. What lies nearer to its image than to grey returns a
little less. With shares on a scale where eps is 0 and flow is 1, a linear denoiser of latents with
as much fine detail as SDXL's has 0.7 to 0.9 as a flow, and -0.1 to 0 as eps. Everything between
passes.
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
MIDDLE = (0.5, 0.6, 0.7)
"""Noise levels of a flow at which eps and flow are compared."""
DETAIL_CORRELATION = 0.9
"""Of output and noise in the middle, below which nothing is said."""
FLOW_PLACE, EPS_PLACE = 0.55, 0.25
"""On the scale where eps is 0 and flow is 1: at least this is a flow, at most this is eps."""
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
    found, measured = clear_prediction(top, noise), f"correlation with the input {r:.2f}"
    if r > V_CORRELATION and claimed != "v":
        shares = [detail_share(output(s * noise, 1000 * s), noise) for s in MIDDLE]
        found = middle_prediction(shares)
        measured += f"; {_described(shares)}"
        if found == "eps" and r <= EPS_CORRELATION:
            found = None
    elif found == "eps":
        shares = [detail_share(output(s * noise, 1000 * s), noise) for s in MIDDLE]
        found = middle_prediction(shares) or found
        measured += f"; {_described(shares)}"
    if found is None or found == claimed:
        return
    advice = f"Set --prediction {found}." if found in allowed else (
        f"Models of {checkpoint.family.label} that predict {' or '.join(allowed)} are supported."
    )  # fmt: skip
    raise CheckpointError(
        f"{checkpoint.path.name} is taken as a {claimed!r} model, but at timestep 999 its "
        f"output is clearly that of a {found!r} model ({measured}). {advice}"
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


def detail_share(output: Tensor, noise: Tensor) -> tuple[float, float]:
    """(how much of the noise the output holds, their correlation), both in fine detail alone."""
    a, b = _detail(output), _detail(noise)
    return float((a * b).sum() / (b * b).sum()), correlation_of(a, b)


def middle_prediction(shares: Sequence[tuple[float, float]]) -> str | None:
    """ "eps" or "flow" where the levels of `MIDDLE` leave no doubt, else None.

    Args:
        shares: (share, correlation) at each of them.
    """
    if any(r < DETAIL_CORRELATION or share <= 0 for share, r in shares):
        return None
    told = torch.tensor([share for share, _ in shares]).log()
    eps = torch.tensor(expected_shares("eps")).log()
    place = float((1 - told / eps).mean())
    if place >= FLOW_PLACE:
        return "flow"
    return "eps" if -EPS_PLACE <= place <= EPS_PLACE else None


def expected_shares(prediction: str) -> list[float]:
    """How much of the noise a network that predicts so returns at the levels of `MIDDLE`."""
    s = torch.tensor(MIDDLE)
    levels = Levels.at_positions(SCHEDULE, 1000 * s)
    eps = s / levels.stds
    return {"flow": torch.ones_like(s), "eps": eps, "v": levels.alphas * eps}[prediction].tolist()


def _described(shares: Sequence[tuple[float, float]]) -> str:
    def listed(values: Sequence[float]) -> str:
        return " ".join(f"{value:.2f}" for value in values)

    kinds = ", ".join(f"{kind} {listed(expected_shares(kind))}" for kind in ("eps", "v", "flow"))
    return (
        f"at noise levels {' '.join(map(str, MIDDLE))} it returns "
        f"{listed([share for share, _ in shares])} of the noise, where {kinds} is expected"
    )


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation over everything but the channels' means; 0 for a constant."""
    return correlation_of(_centred(a), _centred(b))


def correlation_of(a: Tensor, b: Tensor) -> float:
    """Cosine of two tensors; 0 for a zero one."""
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


def _detail(x: Tensor) -> Tensor:
    """Differences of diagonal neighbours' differences, (B, C, h - 1, w - 1): no smooth part."""
    rows = x[..., 1:, :] - x[..., :-1, :]
    return rows[..., 1:] - rows[..., :-1]

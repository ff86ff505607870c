"""Whether a VP network predicts what its marker or the user says, by one forward pass.

At the highest timestep the input is noise: x_t = alpha * x0 + std * eps with alpha = 0.068.

- An eps network returns that noise: the correlation r of output and input is about
  1 - alpha^2 var(x0) / 2, above 0.99 for anything trained.
- A v network returns alpha * eps - std * x0_hat: r is about alpha / sqrt(alpha^2 + std(x0_hat)^2),
  0.07 to 0.2. What is left, x0_hat, is the mean of all images a prompt can mean, hence smooth:
  neighbouring latent pixels are nearly equal.

So r > 0.9 contradicts v. A low r alone contradicts nothing, for an untrained or toy network has it
too; only a low r together with a smooth output, which no untrained network makes of white noise,
contradicts eps. Everything between passes. Measured on random networks: |r| < 0.05, smoothness
between -0.4 and 0.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ..model.conditioning import Conditioning
from .checkpoint import LoadedCheckpoint

EPS_CORRELATION = 0.9
V_CORRELATION = 0.5
SMOOTHNESS = 0.8
HIGHEST_TIMESTEP = 999.0
MAX_LATENT_SIZE = 64
MIN_LATENT_SIZE = 16
"""Below this an image is too small to call smooth."""
SEED = 0


@torch.no_grad()
def check_prediction_type(checkpoint: LoadedCheckpoint, conditioning: Conditioning) -> None:
    """Compare one forward pass with the prediction type in force; flow networks pass unseen.

    Args:
        checkpoint: a loaded checkpoint.
        conditioning: any prompt, best the empty one; its first entry is used.

    Raises:
        CheckpointError: the network clearly predicts the other type.
    """
    claimed = checkpoint.detection.prediction
    if checkpoint.family.sampling.schedule != "vp":
        return
    size = min(checkpoint.detection.resolution // 8, MAX_LATENT_SIZE)
    shape = (1, checkpoint.detection.latent_channels, size, size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    call = checkpoint.call()
    timestep = torch.tensor([HIGHEST_TIMESTEP])
    first = conditioning.index(slice(0, 1)).to(checkpoint.device)
    output = call(noise.to(checkpoint.device), timestep.to(checkpoint.device), first).cpu()
    found = clear_prediction(output, noise)
    if found is not None and found != claimed:
        raise CheckpointError(
            f"{checkpoint.path.name} is taken as a {claimed!r} model, but at timestep 999 its "
            f"output is clearly that of a {found!r} model (correlation with the input "
            f"{correlation(output, noise):.2f}). Set --prediction {found}."
        )


def clear_prediction(output: Tensor, noise: Tensor) -> str | None:
    """ "eps" or "v" where the output at the highest timestep leaves no doubt, else None.

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

"""What networks predict, and how each prediction turns into x0 and back.

On the path x_t = alpha * x0 + std * eps the four predictions are

- `x0`    the clean latent itself;
- `eps`   the unit noise (SD 1.x, SDXL);
- `v`     alpha * eps - std * x0, for variance-preserving schedules (arXiv:2202.00512);
- `flow`  eps - x0, for alpha = 1 - std (SD3).

All tensors are (B, C, H, W) in float32; `alpha` and `std` broadcast against them.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import SettingsError

PREDICTIONS = ("x0", "eps", "v", "flow")
# Floor of every division by alpha or std: both are 0 at one end of a schedule. The smallest alpha
# in use is 2.2e-4 (zero terminal SNR), so the floor only guards the exact ends.
MIN_SCALE = 1e-6


def to_x0(prediction: str, output: Tensor, x_t: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
    """The clean latent that a network output stands for, shape (B, C, H, W)."""
    if prediction == "x0":
        return output
    if prediction == "eps":
        return (x_t - std * output) / alpha.clamp_min(MIN_SCALE)
    if prediction == "v":
        return alpha * x_t - std * output
    if prediction == "flow":
        return x_t - std * output
    raise _unknown(prediction)


def training_target(prediction: str, x0: Tensor, eps: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
    """The regression target of a network at x_t = alpha * x0 + std * eps, shape (B, C, H, W)."""
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return eps
    if prediction == "v":
        return alpha * eps - std * x0
    if prediction == "flow":
        return eps - x0
    raise _unknown(prediction)


def _unknown(prediction: str) -> SettingsError:
    return SettingsError(
        f"Unknown prediction type {prediction!r}; expected one of {', '.join(PREDICTIONS)}."
    )

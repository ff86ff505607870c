"""Noise schedules: variance preserving (SD 1.x, SDXL) and shifted flow (SD3).

Both are used through the same few words:

- `sigma` is the noise level of the k-diffusion contract that every host speaks: for a
  variance-preserving (VP) schedule sigma = sqrt((1 - abar) / abar), for a flow sigma = t in [0, 1].
- The network sees x_t = alpha * x0 + std * eps. VP: alpha = 1 / sqrt(1 + sigma^2),
  std = sigma * alpha; flow: alpha = 1 - sigma, std = sigma.
- `position` counts a model's 1000 training levels from 999 (pure noise) down to 0; -1 is the clean
  end. Few-step grids are even in position, which is what hosts call "Simple" and the literature
  "trailing": 4 steps are 999, 749, 499, 249.
- `timestep` is what the network is fed: the position for VP, 1000 * sigma for a flow.

Tables are float64 on the CPU and handed out as float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import SettingsError

NUM_LEVELS = 1000
# Both host families replace the exactly zero last abar of a rescaled schedule by this number.
ZERO_TERMINAL_ABAR = 4.8973451890853435e-08


@dataclass(frozen=True)
class VPSchedule:
    """The scaled-linear VP schedule of SD 1.x and SDXL (betas .00085 to .012, 1000 levels).

    With `zero_terminal_snr` the square roots of abar are shifted and scaled so that the last level
    holds no signal (arXiv:2305.08891, Algorithm 1); its abar is ZERO_TERMINAL_ABAR, as in hosts.
    """

    zero_terminal_snr: bool = False

    @property
    def dmd_positions(self) -> tuple[int, int]:
        """First and last position at which the DMD gradient is drawn.

        20 to 980: DMD2 leaves out the ends of the schedule (arXiv:2405.14867).
        """
        return 20, 980

    def dmd_residual(self, x_t: Tensor, x0: Tensor, x0_real: Tensor) -> Tensor:
        """p, whose per-sample mean size normalises the DMD gradient, (B, C, H, W).

        x0 - x0_real, as in arXiv:2311.18828, Eq. 8.

        Args:
            x_t: the re-noised sample.
            x0: the sample itself.
            x0_real: the teacher's prediction at x_t.
        """
        return x0 - x0_real

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, std) of x_t = alpha * x0 + std * eps at `sigma`, each shaped like `sigma`."""
        alpha = torch.rsqrt(1 + sigma * sigma)
        return alpha, sigma * alpha

    def sigma_at(self, position: Tensor) -> Tensor:
        """Noise level at a position in [-1, 999], log-linear between levels; 0 at -1."""
        log_sigmas = _vp_sigmas(self.zero_terminal_snr).log()
        inside = position.cpu().double().clamp(0, NUM_LEVELS - 1)  # mps has no float64
        low = inside.floor().long().clamp(max=NUM_LEVELS - 2)
        log_sigma = torch.lerp(log_sigmas[low], log_sigmas[low + 1], inside - low)
        clean = position.cpu() <= -1
        return torch.where(clean, 0.0, log_sigma.exp()).float().to(position.device)

    def timestep_at(self, sigma: Tensor) -> Tensor:
        """The number the network is fed at `sigma`: the position whose level it is."""
        log_sigmas = _vp_sigmas(self.zero_terminal_snr).log()
        log_sigma = sigma.cpu().double().clamp_min(1e-10).log()
        low = (torch.searchsorted(log_sigmas, log_sigma) - 1).clamp(0, NUM_LEVELS - 2)
        span = log_sigmas[low + 1] - log_sigmas[low]
        position = low + ((log_sigma - log_sigmas[low]) / span).clamp(0, 1)
        return position.float().to(sigma.device)


@dataclass(frozen=True)
class FlowSchedule:
    """The rectified-flow schedule of SD3: sigma = shift * u / (1 + (shift - 1) * u).

    u = (position + 1) / 1000 is the unshifted time (arXiv:2403.03206, Eq. 23).
    """

    shift: float = 3.0

    @property
    def dmd_positions(self) -> tuple[int, int]:
        """First and last position at which the DMD gradient is drawn: all, as the paper's code."""
        return 0, NUM_LEVELS - 1

    def dmd_residual(self, x_t: Tensor, x0: Tensor, x0_real: Tensor) -> Tensor:
        """p, whose per-sample mean size normalises the DMD gradient, (B, C, H, W).

        x_t - x0_real = sigma * v, so that sigma cancels, as in the paper's code.
        """
        return x_t - x0_real

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, std) of x_t = alpha * x0 + std * eps at `sigma`, each shaped like `sigma`."""
        return 1 - sigma, sigma

    def sigma_at(self, position: Tensor) -> Tensor:
        """Noise level at a position in [-1, 999], fractions allowed; 0 at -1."""
        u = ((position.cpu().double() + 1) / NUM_LEVELS).clamp(0, 1)
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        return sigma.float().to(position.device)

    def timestep_at(self, sigma: Tensor) -> Tensor:
        """The number the network is fed at `sigma`: 1000 * sigma."""
        return sigma * NUM_LEVELS


Schedule = VPSchedule | FlowSchedule
"""Samplers and the trainer use either by the words above, without asking which it is."""


@lru_cache(maxsize=2)
def _vp_sigmas(zero_terminal_snr: bool) -> Tensor:
    """sqrt((1 - abar) / abar) of the 1000 training levels, float64, increasing, shape (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, NUM_LEVELS, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        root = abar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        abar = root**2
        abar[-1] = ZERO_TERMINAL_ABAR
    return ((1 - abar) / abar).sqrt()


def few_step_positions(num_steps: int) -> Tensor:
    """Positions of the grid that plain hosts call "Simple", then -1: shape (num_steps + 1,).

    Step i starts at 999 - floor(i * 1000 / num_steps): 999, 749, 499, 249 for four steps.
    """
    _check_num_steps(num_steps)
    starts = [NUM_LEVELS - 1 - int(i * NUM_LEVELS / num_steps) for i in range(num_steps)]
    return torch.tensor([*starts, -1], dtype=torch.float64)


def trailing_positions(num_steps: int) -> Tensor:
    """Evenly spaced positions from 999 to -1, not rounded: shape (num_steps + 1,)."""
    _check_num_steps(num_steps)
    return torch.linspace(NUM_LEVELS - 1, -1, num_steps + 1, dtype=torch.float64)


def refine_positions(positions: Tensor, parts: int) -> Tensor:
    """Each interval of a grid divided into `parts` equal ones; the old points stay exact."""
    fractions = torch.arange(parts, dtype=positions.dtype) / parts
    starts, ends = positions[:-1, None], positions[1:, None]
    inner = starts + (ends - starts) * fractions
    return torch.cat([inner.reshape(-1), positions[-1:]])


def _check_num_steps(num_steps: int) -> None:
    if not 1 <= num_steps <= NUM_LEVELS:
        raise SettingsError(
            f"{num_steps} steps were asked for; a grid has between 1 and {NUM_LEVELS}."
        )


@dataclass(frozen=True)
class Levels:
    """Noise levels: four float32 tensors of one shape; a grid of N steps has shape (N + 1,)."""

    sigmas: Tensor
    alphas: Tensor
    stds: Tensor
    timesteps: Tensor

    @classmethod
    def at_positions(cls, schedule: Schedule, positions: Tensor) -> Levels:
        """The levels of a schedule at the given positions."""
        return cls.at_sigmas(schedule, schedule.sigma_at(positions))

    @classmethod
    def at_sigmas(cls, schedule: Schedule, sigmas: Tensor) -> Levels:
        """The levels of a schedule at the given sigmas."""
        sigmas = sigmas.to(torch.float32)
        alphas, stds = schedule.scales(sigmas)
        return cls(sigmas, alphas, stds, schedule.timestep_at(sigmas))

    @property
    def num_steps(self) -> int:
        """Number of steps N; there are N + 1 levels."""
        return len(self.sigmas) - 1

    def __getitem__(self, index: int | Tensor) -> Levels:
        """One level (four scalars), or one per sample (four tensors of the index's shape)."""
        return Levels(
            self.sigmas[index], self.alphas[index], self.stds[index], self.timesteps[index]
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Levels:
        """The same levels with each tensor changed, such as moved to a device."""
        return Levels(*map(change, (self.sigmas, self.alphas, self.stds, self.timesteps)))

    @property
    def broadcast_scales(self) -> tuple[Tensor, Tensor]:
        """(alpha, std), each of shape (1 or B, 1, 1, 1), to multiply latents with."""
        return self.alphas.reshape(-1, 1, 1, 1), self.stds.reshape(-1, 1, 1, 1)

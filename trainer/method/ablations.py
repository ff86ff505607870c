"""What the method is compared with; none of it is the default."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...core.diffusion.schedule import Levels
from .equations import Denoise, roll

# the student's state (B, C, H, W) -> the x0 that it is taught
Aim = Callable[[Tensor], Tensor]


def all_steps(student: Denoise, x_t: Tensor, levels: Levels, start: int, first: int) -> Tensor:
    """The end of the roll-out with every step from `first` on in the graph, (B, C, H, W).

    Args:
        x_t: the state before step `start`.
        first: the first step that the DMD gradient may reach.
    """
    last = levels.num_steps - 1
    with torch.no_grad():
        x_t = roll(student, x_t, levels, start, first)
    x_t = roll(student, x_t, levels, max(start, first), last)
    return student(x_t, levels[last])


def denoised(teacher: Denoise, state: Tensor, levels: Levels, stop: int) -> Aim:
    """The teacher's x0 at the anchor, whatever the student's state (Appendix C, Eq. 39)."""
    x0 = state if stop == levels.num_steps else teacher(state, levels[stop])
    return lambda x_t: x0

"""AdamW of one adapter, in 32 or 8 bit, whose steps are done whole or not at all.

All memory that a step needs is there before it begins: the moments are made at the start, and the
fused kernel needs no temporary copy of the adapter (PyTorch's default on a GPU makes one, after it
has changed the moments). A gradient that is not finite changes nothing, and on fused kernels the
host need not wait to find out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import SettingsError

ADAMW, ADAMW_8BIT = "adamw", "adamw8bit"
# bitsandbytes keeps the moments of smaller tensors in 32 bit.
SMALLEST_8BIT = 4096
SHARED = ("qmap1", "qmap2")  # what a number of 8 bit stands for, the same for all tensors


class AdapterOptimizer:
    """AdamW without weight decay; its moments may wait in CPU memory between steps."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], kind: str = ADAMW, *, offload: bool = False
    ) -> None:
        """Args:
        parameters: float32, all on one device.
        kind: "adamw" or "adamw8bit".
        offload: whether the moments are on the device only during a step.

        Raises:
            SettingsError: 8-bit moments are asked for and bitsandbytes is missing or fails here.
        """
        self.kind, self._parameters = kind, list(parameters)
        self._device = self._parameters[0].device
        self._adam = _adamw(self._parameters) if kind == ADAMW else _adamw8bit(self._parameters)
        self._offloaded: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._allocate(offload)

    @property
    def state(self) -> dict[Any, Any]:
        """The moments and the number of steps of every parameter."""
        return self._adam.state

    @property
    def checks_itself(self) -> bool:
        """Whether a step that is told of a gradient that is not finite leaves all as it was."""
        return bool(self._adam.param_groups[0].get("fused"))

    def _allocate(self, offload: bool) -> None:
        for index, parameter in enumerate(self._parameters):
            if self.kind == ADAMW_8BIT:
                group: Any = self._adam.param_groups[0]
                self._adam.init_state(group, parameter, 0, index)  # type: ignore[attr-defined]
            else:
                self._adam.state[parameter] = {
                    "step": torch.zeros((), device=self._step_device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
            if offload:  # one after the other: they need not fit the device together
                self._move_to_cpu(parameter)

    @property
    def _step_device(self) -> torch.device:
        """Where AdamW counts its steps."""
        return self._device if self.checks_itself else torch.device("cpu")

    def offload(self) -> None:
        """From here on keep the moments in CPU memory between steps."""
        for parameter in self._parameters:
            self._move_to_cpu(parameter)

    def prepare(self) -> None:
        """Bring the moments to the device, if they wait elsewhere; the adapter stays as it is.

        Raises:
            RuntimeError: the device has too little memory; the moments are as they were.
        """
        try:
            for parameter, offloaded in self._offloaded.items():
                # `copy`: where the device is the CPU itself, a step must not write into that
                self.state[parameter] |= {
                    name: value.to(self._device, non_blocking=True, copy=True)
                    for name, value in offloaded.items()
                }
        except RuntimeError:
            self._drop_device_copies()
            raise

    def step(self, learning_rate: float, finite: Tensor) -> None:
        """Apply the gradients and drop them; `prepare` comes before.

        Args:
            finite: whether the gradients are, a bool of shape () on the device. Without
                `checks_itself` only True may come here.
        """
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        if self.checks_itself:
            self._adam.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self._adam.step()
        self.zero_grad()
        for parameter, offloaded in self._offloaded.items():
            for name, value in offloaded.items():
                value.copy_(self.state[parameter][name], non_blocking=True)
        self._drop_device_copies()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def _drop_device_copies(self) -> None:
        """Forget the copies on the device."""
        for parameter, offloaded in self._offloaded.items():
            self.state[parameter] |= offloaded

    def _move_to_cpu(self, parameter: nn.Parameter) -> None:
        state = self.state[parameter]
        moments = {n: v for n, v in state.items() if _is_moment(n, v)}
        self._offloaded[parameter] = {
            n: _in_cpu_memory(v, self._device) for n, v in moments.items()
        }
        state |= self._offloaded[parameter]

    # Saving

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """CPU copies of the state: "parameter/part", and "part" for what all share.

        Args:
            names: of the parameters, in their order.
        """
        self._wait()
        found: dict[str, Tensor] = {}
        for name, parameter in zip(names, self._parameters, strict=True):
            for part, value in self.state[parameter].items():
                key = part if part in SHARED else f"{name}/{part}"
                if key not in found:
                    found[key] = torch.as_tensor(value).detach().cpu().clone()
        return found

    def load(self, names: Sequence[str], saved: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave.

        Raises:
            ValueError: it belongs to another optimizer or other parameters.
        """
        self._wait()
        shared = {part: saved[part].to(self._device, copy=True) for part in SHARED if part in saved}
        left = set(saved) - set(SHARED)
        for name, parameter in zip(names, self._parameters, strict=True):
            state = self.state[parameter]
            for part, value in state.items():
                if part in SHARED:
                    state[part] = shared[part]
                    continue
                state[part] = _like(value, saved[f"{name}/{part}"])
                left.discard(f"{name}/{part}")
            for part, offloaded in self._offloaded.get(parameter, {}).items():
                state[part] = offloaded.copy_(state[part])
        if left:
            raise ValueError(f"{sorted(left)[0]} belongs to another optimizer")

    def _wait(self) -> None:
        """Until copies to CPU memory that are under way have arrived."""
        module = getattr(torch, self._device.type, None)
        if self._offloaded and self._device.type != "cpu" and hasattr(module, "synchronize"):
            module.synchronize()  # type: ignore[union-attr]


def check_optimizer(kind: str, device: torch.device) -> None:
    """Try one step where that is cheap.

    Raises:
        SettingsError: 8-bit moments are asked for and bitsandbytes is missing or fails here.
    """
    if kind == ADAMW_8BIT:
        parameter = nn.Parameter(torch.zeros(SMALLEST_8BIT, device=device))
        parameter.grad = torch.ones_like(parameter)
        with _explained(device):
            _adamw8bit([parameter]).step()
            if not bool((parameter < 0).all()):
                raise RuntimeError("a step in the wrong direction")


@contextlib.contextmanager
def _explained(device: torch.device) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"optimizer is adamw8bit, but bitsandbytes does not work on {device.type} here "
            f"({reason}). Use --optimizer adamw, with --offload-optimizer where memory is short."
        ) from error


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if _fused_works(parameters[0].device):
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)
    # one tensor after the other: no temporary copy of them all
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, foreach=False)


def _fused_works(device: torch.device) -> bool:
    """Whether the device has the kernel, and the kernel leaves out a step when it is told to."""
    parameter = nn.Parameter(torch.zeros(2, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        adam = torch.optim.AdamW([parameter], lr=1.0, weight_decay=0.0, fused=True)
        found = []
        for bad in (1.0, 0.0):
            adam.found_inf = torch.full((), bad, device=device)  # type: ignore[attr-defined]
            adam.step()
            found.append(parameter.detach().clone())
        return bool((found[0] == 0).all() and (found[1] < -0.99).all())
    except (RuntimeError, NotImplementedError, TypeError):
        return False


def _adamw8bit(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
    except ImportError as error:
        raise SettingsError(
            "optimizer is adamw8bit, which needs the package bitsandbytes: install it with "
            "`python install.py --with-8bit`, or use --optimizer adamw."
        ) from error
    return AdamW8bit(parameters, lr=1e-3, weight_decay=0.0, min_8bit_size=SMALLEST_8BIT)


def _is_moment(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and name not in SHARED


def _in_cpu_memory(value: Tensor, device: torch.device) -> Tensor:
    """A CPU copy, in memory that the device reads and writes directly where that can be had."""
    if device.type in ("cuda", "xpu"):
        with contextlib.suppress(RuntimeError):  # the system allows only so much of it
            return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value)
    return value.detach().cpu().clone()


def _like(value: Any, saved: Tensor) -> Any:
    """What was saved in the form of what is there."""
    if not isinstance(value, Tensor):
        return type(value)(saved.item())
    if value.shape != saved.shape or value.dtype != saved.dtype:
        raise ValueError(f"shape or format {tuple(saved.shape)} {saved.dtype} does not fit")
    return saved.to(value.device, copy=True)  # not a map of the file

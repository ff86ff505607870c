"""A text encoder that computes on a device which cannot hold it: one block there at a time.

T5-XXL takes 9.1 GiB; a block of it takes .4. Each prompt brings every block over once. A processor
without instructions for bfloat16, as most at home are, would take far longer for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

Place = tuple[dict[str, Tensor | None], str]
"""Where a module keeps one of its tensors: among its parameters or buffers, by name."""


def block_by_block(model: nn.Module, device: torch.device) -> nn.Module:
    """Let a frozen network on the CPU compute on `device`; itself, with hooks.

    Blocks are what it keeps in lists. All else goes to the device and stays there.
    """
    lists = [n for n, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    blocks = [block for name in outer for block in model.get_submodule(name).children()]
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for (store, name), tensor in _tensors(module):
                store[name] = _moved(tensor, device)
    for block in blocks:
        visit = _Visit(block, device)
        block.register_forward_pre_hook(visit.begin)
        block.register_forward_hook(visit.end, always_call=True)
    return model


def _tensors(module: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    """A module's own tensors, those of its children left out."""
    stores: list[dict] = [module._parameters, module._buffers]
    for store in stores:
        for name, tensor in store.items():
            if tensor is not None:
                yield (store, name), tensor


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.to(device)
    return nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved


class _Visit:
    """The hooks of one block: its tensors are on the device while it computes."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self._home = [found for module in block.modules() for found in _tensors(module)]
        self._device = device

    def begin(self, *_: object) -> None:
        for (store, name), tensor in self._home:
            store[name] = _moved(tensor, self._device)

    def end(self, *_: object) -> None:
        for (store, name), tensor in self._home:
            store[name] = tensor

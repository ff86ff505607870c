"""LyCORIS updates (LoHa, LoKr, Tucker convolutions) as exact low-rank pairs.

A Hadamard or Kronecker product of two products is again one product, of the two ranks' product:

    (U1 D1) o (U2 D2)  = (U1 * U2) (D1 * D2)     rows of U, columns of D multiplied pair by pair
    (U1 D1) x (U2 D2)  = (U1 x U2) (D1 x D2)     x: Kronecker

so whatever takes a plain pair takes these, too. Formulas: Yeh et al., "Navigating Text-To-Image
Customization: From LyCORIS Fine-Tuning to Model Evaluation" (arXiv 2309.14859), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .math import LoraPair

Factors = tuple[Tensor, Tensor]
"""The two of one product: up (out, rank) and down (rank, in, ...)."""


def low_rank_factors(parts: Mapping[str, Tensor], label: str) -> LoraPair:
    """The module's update as one pair of scale 1.

    Args:
        parts: the module's tensors by part, as `lora_names.SUFFIXES` names them; `update_rank` has
            found that they belong together.
        label: file and module, for messages.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
    """
    read = {part: widened(tensor) for part, tensor in parts.items()}
    if "hada_w1_a" in parts:
        factors = _hadamard(read)
    elif "down" in parts:
        factors = _plain(read)
    else:
        factors = _kronecker(read)
    return LoraPair(*factors).check(label)


def widened(tensor: Tensor) -> Tensor:
    """The tensor; one of 8 bits in fp32, which holds all its numbers and can be computed with."""
    return tensor.float() if tensor.element_size() == 1 else tensor


def _plain(parts: Mapping[str, Tensor]) -> Factors:
    """(down, up) of a plain pair, a Tucker core multiplied into down."""
    down, up = parts["down"], parts["up"]
    return (_through_core(parts["mid"], down) if "mid" in parts else down), up


def _through_core(core: Tensor, down: Tensor) -> Tensor:
    """(rank, in, height, width) from a core (rank, rank, height, width) and down (rank, in)."""
    return torch.einsum("ijkl,jr->irkl", core.float(), down.float().flatten(1))


def _hadamard(parts: Mapping[str, Tensor]) -> Factors:
    """(down, up) of a LoHa."""
    (up1, down1), (up2, down2) = (_hadamard_factor(parts, number) for number in "12")
    rows = torch.einsum("oi,oj->oij", up1, up2).flatten(1)
    columns = torch.einsum("i...,j...->ij...", down1, down2).flatten(0, 1)
    return columns, rows


def _hadamard_factor(parts: Mapping[str, Tensor], number: str) -> Factors:
    up, down = (parts[f"hada_w{number}_{half}"].float() for half in "ab")
    core = parts.get(f"hada_t{number}")
    return (up, down) if core is None else (up.T, _through_core(core, down))


def _kronecker(parts: Mapping[str, Tensor]) -> Factors:
    """(down, up) of a LoKr."""
    (up1, down1), (up2, down2) = (_kronecker_factor(parts, number) for number in "12")
    down = torch.kron(down1.flatten(1), down2.flatten(1))
    if down2.ndim > 2:
        down = down.reshape(down.shape[0], -1, *down2.shape[2:])
    return down, torch.kron(up1, up2)


def _kronecker_factor(parts: Mapping[str, Tensor], number: str) -> Factors:
    """(up, down) of a factor; a whole matrix is a product with the identity."""
    whole = parts.get(f"lokr_w{number}")
    if whole is not None:
        matrix = whole.float()
        rows, columns = matrix.shape[0], matrix[0].numel()
        if matrix.ndim == 2 and columns < rows:
            return matrix, torch.eye(columns)
        return torch.eye(rows), matrix
    up, down = (parts[f"lokr_w{number}_{half}"].float() for half in "ab")
    core = parts.get(f"lokr_t{number}")
    return (up, down) if core is None else (up.T.contiguous(), _through_core(core, down))

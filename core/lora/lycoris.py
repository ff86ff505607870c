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

from ..errors import LoraError
from .math import LoraPair

Factors = tuple[Tensor, Tensor]
"""up (out, rank) and down (rank, in, ...) of one product."""


def low_rank_factors(parts: Mapping[str, Tensor], label: str) -> tuple[LoraPair, int | None]:
    """(the module's update as one pair of scale 1, the rank that alpha is divided by).

    The rank is None where the kind has no scale: a LoKr both of whose factors are whole.

    Args:
        parts: the module's tensors by part, as `lora_keys.SUFFIXES` names them.
        label: file and module, for messages.

    Raises:
        LoraError: a tensor is missing, or sizes contradict each other.
        NonFiniteError: a weight is NaN or infinite.
    """
    try:
        if any(part.startswith("hada") for part in parts):
            return _hadamard(parts, label)
        if any(part.startswith("lokr") for part in parts):
            return _kronecker(parts, label)
        pair = LoraPair(*_plain(parts)).check(label)
    except KeyError as error:
        raise LoraError(f"{label} has no {_title(error.args[0])}; the file is damaged.") from error
    except (RuntimeError, IndexError) as error:
        sizes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items())
        raise LoraError(f"{label}: the sizes contradict each other: {sizes}.") from error
    return pair, pair.rank


def _title(part: str) -> str:
    return f"{part} half" if part in ("down", "up") else part


def _plain(parts: Mapping[str, Tensor]) -> Factors:
    """(down, up) of a plain pair, a Tucker core multiplied into down."""
    down, up = parts["down"], parts["up"]
    return (_through_core(parts["mid"], down) if "mid" in parts else down), up


def _through_core(core: Tensor, down: Tensor) -> Tensor:
    """(rank, in, height, width) from a core (rank, rank, height, width) and down (rank, in)."""
    return torch.einsum("ijkl,jr->irkl", core.float(), down.float().flatten(1))


def _hadamard(parts: Mapping[str, Tensor], label: str) -> tuple[LoraPair, int]:
    (up1, down1), (up2, down2) = (_hadamard_factor(parts, number) for number in "12")
    rows = torch.einsum("oi,oj->oij", up1, up2).flatten(1)
    columns = torch.einsum("i...,j...->ij...", down1, down2).flatten(0, 1)
    return LoraPair(columns, rows).check(label), down1.shape[0]


def _hadamard_factor(parts: Mapping[str, Tensor], number: str) -> Factors:
    up, down = (parts[f"hada_w{number}_{half}"].float() for half in "ab")
    core = parts.get(f"hada_t{number}")
    return (up, down) if core is None else (up.T, _through_core(core, down))


def _kronecker(parts: Mapping[str, Tensor], label: str) -> tuple[LoraPair, int | None]:
    (up1, down1), rank1 = _kronecker_factor(parts, "1")
    (up2, down2), rank2 = _kronecker_factor(parts, "2")
    down = torch.kron(down1.flatten(1), down2.flatten(1))
    if down2.ndim > 2:
        down = down.reshape(down.shape[0], -1, *down2.shape[2:])
    pair = LoraPair(down, torch.kron(up1, up2)).check(label)
    return pair, rank2 if rank1 is None else rank1


def _kronecker_factor(parts: Mapping[str, Tensor], number: str) -> tuple[Factors, int | None]:
    """A factor and its rank; a whole matrix is a product with the identity and has none."""
    whole = parts.get(f"lokr_w{number}")
    if whole is not None:
        matrix = whole.float()
        rows, columns = matrix.shape[0], matrix[0].numel()
        if matrix.ndim == 2 and columns < rows:
            return (matrix, torch.eye(columns)), None
        return (torch.eye(rows), matrix), None
    up, down = (parts[f"lokr_w{number}_{half}"].float() for half in "ab")
    core = parts.get(f"lokr_t{number}")
    factors = (up, down) if core is None else (up.T.contiguous(), _through_core(core, down))
    return factors, down.shape[0]

"""The sizes that the tensors of one update must have, checked by their headers alone; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..errors import LoraError

Shape = tuple[int, ...]
HALVES = ("down", "up")
KINDS = ("diff", "hada", "lokr")
"""Beginnings of parts; those of a plain LoRA have none in common."""


def check_pair(name: str, down: Shape, up: Shape) -> None:
    """LoraError naming `name` unless these are a pair: (rank, in, ...) and (out, rank, ...)."""
    if len(down) not in (2, 4) or up[1:2] != down[:1]:
        raise LoraError(
            f"{name}: down {down} and up {up} are not a LoRA pair; expected (rank, in, ...) and "
            "(out, rank, ...)."
        )
    rank = down[0]
    if rank == 0 or math.prod(up[1:]) != rank:
        raise LoraError(
            f"{name}: a pair of rank {rank} whose up has the shape {up}; (out, rank) or "
            "(out, rank, 1, 1) was expected."
        )


def update_rank(shapes: Mapping[str, Shape], label: str) -> int | None:
    """What the alpha of one module is divided by; None where its kind has no scale.

    That is so for a LoKr both of whose factors are whole, and for whole differences.

    Args:
        shapes: of the module's tensors by part, without its alpha.
        label: file and module, for messages.

    Raises:
        LoraError: a tensor is missing, or sizes contradict each other.
    """
    kinds = {part[:4] if part[:4] in KINDS else "lora" for part in shapes if part != "diff_b"}
    if len(kinds) > 1:
        raise LoraError(
            f"{label} is given in two forms at once ({', '.join(sorted(shapes))}). The file was "
            "joined from two; take the original."
        )
    for part in ("diff", "diff_b"):
        if 0 in shapes.get(part, ()):
            raise LoraError(f"{label}: its {part} holds no number; the file is damaged.")
    try:
        if kinds == {"diff"} or shapes.keys() == {"diff_b"}:
            rank = None
        elif kinds == {"hada"}:
            rank = _hadamard(shapes)
        elif kinds == {"lokr"}:
            rank = _kronecker(shapes)
        else:
            rank = _plain(shapes, label)
    except KeyError as error:
        part = error.args[0]
        half = f"{part} half" if part in HALVES else part
        raise LoraError(f"{label} has no {half}; the file is damaged.") from error
    except _Contradiction as error:
        sizes = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
        raise LoraError(f"{label}: the sizes contradict each other: {sizes}.") from error
    return rank


class _Contradiction(Exception):  # noqa: N818
    """Sizes that cannot be multiplied."""


def _expect(is_right: bool) -> None:
    if not is_right:
        raise _Contradiction


def _plain(shapes: Mapping[str, Shape], label: str) -> int:
    down, up = shapes["down"], shapes["up"]
    core = shapes.get("mid")
    if core is not None:  # (rank, rank, height, width)
        _expect(len(down) in (2, 4) and len(core) == 4 and core[1] == down[0])
        down = (core[0], math.prod(down[1:]))
    check_pair(label, down, up)
    return down[0]


def _hadamard(shapes: Mapping[str, Shape]) -> int:
    sizes = [_factor(shapes, f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}") for n in "12"]
    (first, rank), (second, _) = sizes
    _expect(first == second)
    return rank


def _factor(shapes: Mapping[str, Shape], a: str, b: str, core: str) -> tuple[Shape, int]:
    """(sizes of a product, its rank); a (out, rank) and b (rank, in, ...), or with a core."""
    up, down, middle = shapes[a], shapes[b], shapes.get(core)
    _expect(len(up) == 2 and len(down) in (2, 4) and 0 not in (*up, *down))
    if middle is None:
        _expect(up[1] == down[0])
        return (up[0], *down[1:]), down[0]
    _expect(len(down) == 2 and len(middle) == 4 and middle[:2] == (up[0], down[0]))
    return (up[1], down[1], *middle[2:]), middle[0]


def _kronecker(shapes: Mapping[str, Shape]) -> int | None:
    ranks = []
    for number in "12":
        whole = shapes.get(f"lokr_w{number}")
        if whole is not None:
            _expect(len(whole) in (2, 4) and 0 not in whole)
            ranks.append(None)
            continue
        names = (f"lokr_w{number}_a", f"lokr_w{number}_b", f"lokr_t{number}")
        ranks.append(_factor(shapes, *names)[1])
    return ranks[1] if ranks[0] is None else ranks[0]

"""Whether a network's tensors are all there, each with its shape and a format that can be read."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import CheckpointError, UnsupportedModelError
from ...files.tensor_file import TensorInfo
from ..base import TensorSource

FLOAT_DTYPES = {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"}
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Stored:
    """The tensors of one component as headers show them.

    Attributes:
        label: what to call the file or folder they lie in.
        prefix: what their names start with in the file.
        infos: by name without the prefix.
    """

    label: str
    prefix: str
    infos: Mapping[str, TensorInfo]


def check_tensors(
    stored: Stored, needed: Mapping[str, tuple[TensorSource, tuple[int, ...]]], what: str
) -> None:
    """Name every tensor of `needed` that is absent or has another shape.

    Args:
        stored: what the file has.
        needed: by parameter name, where it should lie and the parameter's shape.
        what: the component's name.

    Raises:
        CheckpointError: with the names as they stand in the file.
    """
    missing = [s.key for s, _ in needed.values() if s.key not in stored.infos]
    if missing:
        raise CheckpointError(
            f"{stored.label}: the {what} lacks {_names(stored, missing)}. The file is incomplete "
            "or of a variant that is not supported; download it again or use the full checkpoint."
        )
    for item, shape in needed.values():
        info = stored.infos[item.key]
        if info.dtype not in FLOAT_DTYPES:
            raise UnsupportedModelError(
                f"{stored.label}: {stored.prefix + item.key!r} of the {what} is stored as "
                f"{info.dtype}. Supported: F32, F16, BF16, F8_E4M3, F8_E5M2."
            )
        expected = stored_shape(item, shape)
        if info.shape != expected and not (item.change == "squeeze" and info.shape == shape):
            raise CheckpointError(
                f"{stored.label}: {stored.prefix + item.key!r} of the {what} has shape "
                f"{info.shape}, expected {expected}. The file is damaged, or of a variant that is "
                "not supported."
            )


def stored_shape(item: TensorSource, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape a parameter of `shape` has in the file."""
    if item.part is not None:
        return (item.stored_rows(shape[0]), *shape[1:])
    if item.change == "transpose":
        return shape[::-1]
    return (*shape, 1, 1) if item.change == "squeeze" and len(shape) == 2 else shape


def _names(stored: Stored, keys: list[str]) -> str:
    unique = list(dict.fromkeys(stored.prefix + key for key in keys))
    shown = ", ".join(repr(key) for key in unique[:NAMES_SHOWN])
    more = f" and {len(unique) - NAMES_SHOWN} more" if len(unique) > NAMES_SHOWN else ""
    return f"{len(unique)} tensor{'s' if len(unique) > 1 else ''} it must have: {shown}{more}"

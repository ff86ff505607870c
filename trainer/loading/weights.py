"""Filling networks from safetensors files: checked by name and shape first, then memory-mapped.

Nothing is allocated before every tensor that the network needs has been found in the header with
the right shape. Weights stored in the wanted dtype are used straight from the mapped file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...core.errors import CheckpointError, NonFiniteError
from ...core.families import TensorSource, refuse_quantised
from ...core.families.parts.complete import Stored, check_tensors
from ...core.families.parts.encoder_layout import Source
from ...core.files.tensor_file import TensorFile, TensorInfo
from ...core.lora.file import parameter_shapes
from ...core.lora.math import Update, delta

PIECE = 1 << 18


class Weights:
    """The tensors of one component, read only; its names have no prefix.

    Args:
        files: headers of the file or shards it lies in.
        prefix: what the component's names start with in the file.
    """

    def __init__(self, files: Sequence[TensorFile], prefix: str = "") -> None:
        self.files, self.prefix = list(files), prefix
        self.infos: dict[str, TensorInfo] = {}
        self._open: dict[Path, safe_open] = {}
        for file in files:
            self.infos.update(file.under(prefix))

    @property
    def label(self) -> str:
        """The name to show for where these tensors come from."""
        first = self.files[0].path
        return first.name if len(self.files) == 1 else f"{first.parent.name}/"

    def read(self, key: str) -> Tensor:
        """The stored tensor, mapped from the file and not copied."""
        return self.read_full(self.prefix + key)

    def read_full(self, name: str) -> Tensor:
        """A tensor by its full name in the file, prefix or not."""
        file = self._file_of(name)
        path = file.path
        if path not in self._open:
            try:
                self._open[path] = safe_open(str(path), framework="pt", device="cpu")
            except SafetensorError as error:
                raise CheckpointError(
                    f"{path} is damaged: {error}. Download it again, or save it again from your "
                    "host."
                ) from error
            except OSError as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error}). See that it and its drive are there. On "
                    "Windows it may be a lack of memory, too: free some, or enlarge the page file."
                ) from error
        return self._open[path].get_tensor(file.stored_names.get(name, name))

    def close(self) -> None:
        """Give the mapped files back; tensors that were read keep what they need."""
        self._open.clear()

    def sample_bytes(self, name: str, count: int) -> bytes:
        """The first and the last `count` stored bytes of a tensor, by its full name."""
        file = self._file_of(name)
        info = file.tensors[name]
        try:
            with file.path.open("rb") as stream:
                stream.seek(file.data_offset + info.start)
                head = stream.read(min(count, info.end - info.start))
                stream.seek(file.data_offset + max(info.start, info.end - count))
                return head + stream.read(min(count, info.end - info.start))
        except OSError as error:
            raise CheckpointError(
                f"{file.path} cannot be read ({error}). See that it and its drive are there."
            ) from error

    def _file_of(self, name: str) -> TensorFile:
        return next(file for file in self.files if name in file.tensors)


@dataclass
class Updates:
    """What is added to stored weights, in fp32, before they are rounded to the network's dtype.

    Attributes:
        deltas: by parameter's name, of each LoRA, added in their order.
        origin: [SHA256 of the LoRA file, strength] of each LoRA they come from, in that order.
    """

    deltas: list[Mapping[str, Update]] = field(default_factory=list)
    origin: list[tuple[str, float]] = field(default_factory=list)

    def add(self, deltas: Mapping[str, Update], sha256: str, strength: float) -> None:
        """Take in what one more LoRA adds."""
        self.deltas.append(deltas)
        self.origin.append((sha256, strength))

    def added(self, parameter: str, stored: Tensor) -> Tensor:
        """The stored value with the updates of that parameter, in fp32."""
        value = stored.float()
        for deltas in self.deltas:
            if parameter in deltas:
                value = value + delta(deltas[parameter].to(value.device), value.shape)
        return value

    def change(self, parameter: str) -> bool:
        """Whether anything is added to that parameter."""
        return any(parameter in deltas for deltas in self.deltas)


@dataclass
class Component:
    """A network that lies in a checkpoint: checked when it is made, loaded when it is needed.

    Attributes:
        what: its name in messages, for example "UNet".
        factory: makes the network; called with the meta device as default, so costs no memory.
        weights: the component's tensors.
        source: where the value of each parameter lies.
        updates: LoRAs that are merged into it whenever it is loaded.
        extra: full names of tensors that belong to it beside its parameters, such as a table of
            token ids.
    """

    what: str
    factory: Callable[[], nn.Module]
    weights: Weights
    source: Source
    updates: Updates = field(default_factory=Updates)
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._empty: nn.Module | None = None
        self._sources: dict[str, TensorSource] = {}

    def check(self) -> None:
        """Compare what the network needs with the header.

        Raises:
            CheckpointError: a tensor is missing, or has the wrong shape or kind.
        """
        weights = self.weights
        refuse_quantised(
            f"{weights.label} ({self.what})", map(weights.prefix.__add__, weights.infos)
        )
        slots, sources = self._empty_network().state_dict(), self.sources
        needed = {name: (sources[name], tuple(slot.shape)) for name, slot in slots.items()}
        check_tensors(Stored(weights.label, weights.prefix, weights.infos), needed, self.what)

    @property
    def config(self) -> dict:
        """The network's full config."""
        config = self._empty_network().config
        return config.to_dict() if hasattr(config, "to_dict") else dict(config)  # type: ignore[operator]

    def used(self) -> set[str]:
        """Full names of the file's tensors that the network is made of."""
        return {self.weights.prefix + source.key for source in self.sources.values()}

    @property
    def sources(self) -> dict[str, TensorSource]:
        """Where the value of every parameter lies."""
        if not self._sources:
            names = self._empty_network().state_dict()
            self._sources = {name: self.source(name) for name in names}
        return self._sources

    @property
    def parameter_shapes(self) -> dict[str, torch.Size]:
        """Shape of every parameter, by name."""
        return parameter_shapes(self._empty_network())

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the network's numbers in `dtype`."""
        return sum(
            slot.numel() * (dtype if slot.is_floating_point() else slot.dtype).itemsize
            for slot in self._empty_network().state_dict().values()
        )

    def load(self, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The network, filled, frozen and in evaluation mode.

        Raises:
            CheckpointError: as `check` does.
            NonFiniteError: a weight is NaN or infinite.
        """
        self.check()
        sources, network, self._empty = self.sources, self._empty_network(), None
        values = {}
        for name, slot in network.state_dict().items():
            wanted = dtype if slot.is_floating_point() else slot.dtype
            changed, shape = self.updates.change(name), tuple(slot.shape)
            read_as = torch.float32 if changed else wanted
            value = _value(self.weights, sources[name], shape, read_as, device)
            values[name] = self._merged(name, value, wanted) if changed else value
        network.load_state_dict(values, strict=True, assign=True)
        self.weights.close()
        _restore_buffers(network, device)
        return network.requires_grad_(False).eval()

    def _merged(self, name: str, stored: Tensor, dtype: torch.dtype) -> Tensor:
        value = self.updates.added(name, stored).to(dtype)
        if not is_finite(value):
            raise NonFiniteError(
                f"{self.weights.label} ({self.what}): with the LoRAs merged, {name!r} has values "
                f"beyond the range of {dtype}. Lower their strength, or choose bfloat16 or float32."
            )
        return value

    def _empty_network(self) -> nn.Module:
        if self._empty is None:
            with torch.device("meta"):
                self._empty = self.factory()
        return self._empty


def _value(
    weights: Weights,
    item: TensorSource,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    stored = weights.read(item.key)
    if item.part is not None:
        stored = stored.narrow(0, item.first_row(shape[0]), shape[0])
    if torch.device(device).type == "mps":  # Apple GPUs know neither fp8 nor fp64
        stored = converted(stored, dtype)
    value = converted(stored.to(device), dtype)
    if item.change == "swap_halves":
        value = torch.cat(value.chunk(2, dim=0)[::-1], dim=0)
    elif item.change == "transpose":
        value = value.T.contiguous()
    value = value.reshape(shape)
    if not is_finite(value):
        _refuse_non_finite(weights, item.key, stored, dtype)
    return value


def converted(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype; itself where it has that dtype already.

    On the CPU half precisions convert into each other twice as fast through fp32 in pieces that
    stay in the cache. The step through fp32 changes no value: it holds every number of either.
    """
    if stored.device.type != "cpu" or {stored.dtype, dtype} != {torch.float16, torch.bfloat16}:
        return stored.to(dtype)
    value = torch.empty(stored.shape, dtype=dtype)
    pieces = zip(value.view(-1).split(PIECE), stored.reshape(-1).split(PIECE), strict=True)
    for target, piece in pieces:
        target.copy_(piece.float())
    return value


def is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; one pass, no temporaries."""
    if not value.is_floating_point() or value.numel() == 0:
        return True
    low, high = value.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _refuse_non_finite(weights: Weights, key: str, stored: Tensor, dtype: torch.dtype) -> None:
    name = weights.prefix + key
    if is_finite(stored.float()):
        raise NonFiniteError(
            f"{weights.label}: {name!r} has values beyond the range of {dtype}. Choose bfloat16 "
            "or float32 as the model's dtype."
        )
    raise NonFiniteError(
        f"{weights.label}: {name!r} holds NaN or infinite values, so the model cannot work. Use an "
        "undamaged copy (a bad merge is the usual cause)."
    )


def _restore_buffers(network: nn.Module, device: torch.device | str) -> None:
    """Give values to the buffers that are never stored: CLIP's position numbers.

    Those that a factory made with values, such as frequencies, go to the device with them.
    """
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
                continue
            assert name == "position_ids", f"unknown buffer {name} in {type(module).__name__}"
            numbers = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            module.register_buffer(name, numbers, persistent=False)

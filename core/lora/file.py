"""LoRA files: written so that hosts apply them at strength 1.0 as trained, read from any trainer.

UNets' are written in kohya's form, with alpha = scale * rank. Families with fused layers have no
alpha: the scale is in `up`, and q, k and v form one exact block-diagonal update.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import LoraError
from ..families import Config, Family
from ..files.atomic_write import atomic_path, check_output
from ..files.hashes import tensor_bytes_hash
from ..recipe.recipe import Recipe, read_recipe
from .contents import LoraContents, check_family, read_lora_header
from .header import header_bytes, header_hashes
from .keys import DIFFERENCES, LoraModule
from .layout import Format, common_alpha, lora_tensors
from .lycoris import low_rank_factors, widened
from .math import Difference, LoraPair, Update, delta
from .metadata import NetworkFacts, lora_metadata
from .targets import Target, fits, part_of, resolve, targets_by_name


@dataclass(frozen=True)
class NewLora:
    """A trained LoRA and what its file shall say of it.

    Attributes:
        family: of the network that it was trained on.
        config: that network's diffusers configuration.
        pairs: what was trained, by full diffusers module name.
        recipe: how to sample with it.
        metadata: `training_metadata` and whatever else the file shall say.
    """

    family: Family
    config: Config
    pairs: Mapping[str, LoraPair]
    recipe: Recipe
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_lora(
    path: Path,
    lora: NewLora,
    *,
    dtype: torch.dtype = torch.float16,
    format: Format = "kohya",
    overwrite: bool = False,
) -> Path:
    """Write the LoRA with its recipe, metadata and hashes in one atomic move; returns its path.

    Args:
        format: "kohya" for hosts, "peft" for diffusers.

    Raises:
        OutputError: the place cannot be written or holds a file and `overwrite` is off.
        NonFiniteError: a weight is NaN, infinite, or too large for `dtype`.
    """
    path = Path(path)
    check_output(path, overwrite)
    tensors = lora_tensors(lora.family, lora.config, lora.pairs, dtype, format)
    described = lora_metadata(lora.recipe, _network_facts(path.stem, lora), lora.metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(serialize(tensors, described))
    return path


def serialize(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The file's header and body, its own hashes among the metadata.

    The hashes cover the tensor bytes alone, so they can be computed first and stored beside them.
    """
    plain = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", plain[:8])
    entries, body = json.loads(plain[8 : 8 + length]), memoryview(plain)[8 + length :]
    hashes = header_hashes(entries, metadata, tensor_bytes_hash(body), body)
    return [header_bytes(entries, {**metadata, **hashes}), body]


def _network_facts(name: str, lora: NewLora) -> NetworkFacts:
    largest = max(lora.pairs.values(), key=lambda pair: pair.rank)
    return NetworkFacts(
        name=name,
        rank=largest.rank,
        alpha=common_alpha(lora.pairs),
        has_convolutions=any(pair.down.shape[2:].numel() > 1 for pair in lora.pairs.values()),
        architecture=lora.family.lora.architecture(lora.config),
    )


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it lies on disk; nothing is known of a network yet.

    Attributes:
        contents: what its header says.
        state: its tensors by key.
    """

    contents: LoraContents
    state: dict[str, Tensor]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.contents.header.path

    @property
    def metadata(self) -> dict[str, str]:
        """What it says of itself."""
        return self.contents.header.metadata

    @property
    def modules(self) -> dict[str, LoraModule]:
        """Its modules of the denoiser, by plain name."""
        return self.contents.modules

    @property
    def text_encoder_keys(self) -> tuple[str, ...]:
        """Its tensors for text encoders."""
        return self.contents.text_encoder_keys

    @property
    def family(self) -> str:
        """One of ours, the name of another family, or "" where nothing says."""
        return self.contents.family

    @property
    def recipe(self) -> Recipe | None:
        """The sampling recipe in the file, if it has one; raises RecipeError if it is broken."""
        return read_recipe(self.metadata)

    def pair(self, module: LoraModule, text_encoder: str = "") -> LoraPair:
        """The low-rank pair of one module, with its scale at strength 1.0.

        Args:
            text_encoder: diffusers' name of the encoder that the module is part of, if it is.

        Raises:
            LoraError: its alpha is one of several.
            NonFiniteError: a weight is NaN or infinite.
        """
        parts = {part: self.state[module.keys[part]] for part in module.low_rank}
        pair = low_rank_factors(parts, self.contents.label(module))
        return LoraPair(pair.down, pair.up, self.contents.scale(module, text_encoder))

    def difference(self, module: LoraModule, parameter: str) -> Difference:
        """The whole change of the module's "weight" or "bias".

        Raises:
            NonFiniteError: a value is NaN or infinite.
        """
        key = module.keys[DIFFERENCES[parameter]]
        return Difference(widened(self.state[key])).check(self.contents.label(module))

    def not_applied(self) -> list[str]:
        """What is to be said where the denoiser's part alone is applied."""
        notes = [self.contents.embedding_note()]
        if self.text_encoder_keys:
            count = len(self.text_encoder_keys)
            notes.append(f"{count} text-encoder tensors of {self.path.name} are not applied.")
        return [note for note in notes if note]


def open_lora(path: Path) -> LoraFile:
    """The LoRA file at `path`, be it for the denoiser, text encoders or both.

    Raises:
        LoraError: it is anything else, or of a kind that is not handled.
    """
    path = Path(path)
    contents = read_lora_header(path)
    try:
        state = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise LoraError(f"The LoRA cannot be read. {error}") from error
    return LoraFile(contents, state)


def read_lora(path: Path) -> LoraFile:
    """The LoRA file at `path`; LoraError if it is anything else, or for text encoders only."""
    lora = open_lora(path)
    if not lora.modules:
        raise LoraError(f"{lora.path.name} changes text encoders only; there is nothing to apply.")
    return lora


def lora_deltas(
    lora: LoraFile,
    family: Family,
    config: Config,
    shapes: Mapping[str, torch.Size],
    strength: float = 1.0,
) -> Deltas:
    """What the LoRA adds to each parameter of a network, strength in `scale`.

    Args:
        config: the diffusers configuration of the network.
        shapes: shape of every parameter of the network, by diffusers name.

    Raises:
        LoraError: it is of another family, has no place in the network, or does not fit there.
    """
    check_family(lora.contents, family)
    targets = targets_by_name(shapes, family, config)
    return module_deltas(Deltas(lora, shapes, strength), lora.modules, targets)


def module_deltas(
    found: Deltas, modules: Mapping[str, LoraModule], targets: Mapping[str, list[Target]]
) -> Deltas:
    """What some modules of a file add to a network, by the names of its parameters.

    Args:
        found: of that file and network; it is empty and gets a place for each parameter.
        modules: of the file, by plain name.
        targets: of the network, by plain name.

    Raises:
        LoraError: a module has no target, does not fit it, or shares it with another.
        NonFiniteError: a weight is NaN or infinite.
    """
    places = resolve(modules, targets, found.label)
    for name, module in modules.items():
        for leaf in module.parameters:
            found.add(name, module, leaf, places[name])
    return found


@dataclass(frozen=True, eq=False)
class Deltas(Mapping[str, Update]):
    """What a file adds, by the network's parameters; each update is made when it is asked for.

    Written out as pairs, a LoHa or LoKr takes many times its file's size: one module at a time.

    Attributes:
        shapes: shape of every parameter of the network, by its name.
        text_encoder: diffusers' name of the encoder that the network is, if it is one.
        places: module of the file and place in the network, by the parameter's name.
    """

    lora: LoraFile
    shapes: Mapping[str, torch.Size]
    strength: float
    text_encoder: str = ""
    places: dict[str, tuple[LoraModule, Target]] = field(default_factory=dict)

    def __getitem__(self, parameter: str) -> Update:
        """What is added to the parameter, strength in `scale`."""
        module, target = self.places[parameter]
        leaf = parameter.rpartition(".")[2]
        update = part_of(self._whole(module, leaf), target, self.shapes[parameter])
        return dataclasses.replace(update, scale=update.scale * self.strength)

    def _whole(self, module: LoraModule, leaf: str) -> Update:
        """What the file adds to the stored tensor; `leaf`: the module's "weight" or "bias"."""
        if DIFFERENCES[leaf] in module.keys:
            return self.lora.difference(module, leaf)
        return self.lora.pair(module, self.text_encoder)

    def add(self, name: str, module: LoraModule, leaf: str, targets: Sequence[Target]) -> None:
        """Give a module's "weight" or "bias" its place; `name`: as the file calls the module.

        Raises:
            LoraError: there is none, it is taken, or the sizes do not fit.
        """
        update = self._whole(module, leaf)
        for target in targets:
            parameter = f"{target.module}.{leaf}"
            if parameter in self:
                raise LoraError(
                    f"{self.label} changes {target.module} twice, under two names. It is damaged, "
                    "or joined from two files; take the original."
                )
            shape = self.shapes.get(parameter)
            if shape is None:
                raise LoraError(
                    f"{self.label}: {name} changes a {leaf}, and the model's {target.module} has "
                    "none. It was made for another model."
                )
            if not fits(update, target, shape):
                raise LoraError(
                    f"{self.label}: {name} has {_sizes(update)}, which do not fit the model's "
                    f"{tuple(shape)}. It was made for another model."
                )
            self.places[parameter] = (module, target)

    @property
    def label(self) -> str:
        """File and encoder, for messages."""
        file = self.lora.path.name
        return f"{file}, {self.text_encoder}" if self.text_encoder else file

    @property
    def layers(self) -> int:
        """How many of the network's layers are changed."""
        return len({parameter.rpartition(".")[0] for parameter in self.places})

    def __contains__(self, parameter: object) -> bool:
        return parameter in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _sizes(update: Update) -> str:
    if isinstance(update, Difference):
        return f"a difference of sizes {tuple(update.value.shape)}"
    return f"sizes {tuple(update.down.shape)} and {tuple(update.up.shape)}"


def parameter_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Shape of every parameter, by name; one that has two names stands under both."""
    return {name: value.shape for name, value in network.state_dict().items()}


@torch.no_grad()
def merge_lora(network: nn.Module, deltas: Mapping[str, Update]) -> None:
    """Add what is given by parameter to the network in place, summed in fp32."""
    for name, update in deltas.items():
        value = network.get_parameter(name)
        value.copy_(value.float() + delta(update.to(value.device), value.shape))

"""LoRA files: written so that hosts apply them at strength 1.0 as trained, read from any trainer.

UNets' are written in kohya's form, with alpha = scale * rank. Families with fused layers have no
alpha: the scale is in `up`, and q, k and v form one exact block-diagonal update.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
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
from .keys import LoraModule
from .layout import Format, common_alpha, lora_tensors
from .lycoris import low_rank_factors
from .math import LoraPair, delta
from .metadata import NetworkFacts, lora_metadata
from .targets import Target, part_of, resolve, targets_by_name


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
        parts = {p: self.state[key] for p, key in module.keys.items() if p != "alpha"}
        pair = low_rank_factors(parts, self.contents.label(module))
        return LoraPair(pair.down, pair.up, self.contents.scale(module, text_encoder))

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
) -> Mapping[str, LoraPair]:
    """What the LoRA adds to each module of a network: W + scale * up @ down, strength in `scale`.

    Args:
        config: the diffusers configuration of the network.
        shapes: shape of the weight of every module of the network, by diffusers name.
    """
    check_family(lora.contents, family)
    targets = targets_by_name(shapes, family, config)
    return module_deltas(Deltas(lora, shapes, strength), lora.modules, targets)


def module_deltas(
    found: Deltas, modules: Mapping[str, LoraModule], targets: Mapping[str, list[Target]]
) -> Deltas:
    """What some modules of a file add to a network, by the network's module names.

    Args:
        found: of that file and network; it is empty and gets a place for each module.
        modules: of the file, by plain name.
        targets: of the network, by plain name.

    Raises:
        LoraError: a module has no target, does not fit it, or shares it with another.
    """
    file = found.lora.path.name
    label = f"{file}, {found.text_encoder}" if found.text_encoder else file
    places = resolve(modules, targets, label)
    for name, module in modules.items():
        for target in places[name]:
            if target.module in found:
                raise LoraError(
                    f"{label} changes {target.module} twice, under two names. It is damaged, or "
                    "joined from two files; take the original."
                )
            found.places[target.module] = (module, target)
            pair, shape = found[target.module], found.shapes[target.module]
            if pair.up.shape[0] * pair.down[0].numel() != shape.numel():
                raise LoraError(
                    f"{label}: {name} has sizes {tuple(pair.down.shape)} and "
                    f"{tuple(pair.up.shape)}, which do not fit the model's {tuple(shape)}. It was "
                    "made for another model."
                )
    return found


@dataclass(frozen=True, eq=False)
class Deltas(Mapping[str, LoraPair]):
    """What a file adds, by network module; each pair is made whenever it is asked for.

    Written out as pairs, a LoHa or LoKr takes many times its file's size: one module at a time.

    Attributes:
        shapes: shape of the weight of every module of the network, by its name.
        text_encoder: diffusers' name of the encoder that the network is, if it is one.
        places: module of the file and place in the network, by the network's module name.
    """

    lora: LoraFile
    shapes: Mapping[str, torch.Size]
    strength: float
    text_encoder: str = ""
    places: dict[str, tuple[LoraModule, Target]] = field(default_factory=dict)

    def __getitem__(self, module: str) -> LoraPair:
        """The module's pair, strength in `scale`."""
        entry, target = self.places[module]
        pair = part_of(self.lora.pair(entry, self.text_encoder), target, self.shapes[module])
        return LoraPair(pair.down, pair.up, pair.scale * self.strength)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def weight_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Shape of the weight of every linear and convolutional layer, by module name."""
    layers = (nn.Linear, nn.Conv2d)
    named = network.named_modules()
    return {name: layer.weight.shape for name, layer in named if isinstance(layer, layers)}


@torch.no_grad()
def merge_lora(network: nn.Module, deltas: Mapping[str, LoraPair]) -> None:
    """Add the deltas to the network's weights in place, summed in fp32."""
    for name, pair in deltas.items():
        weight = network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.copy_(weight.float() + delta(pair.to(weight.device), weight.shape))

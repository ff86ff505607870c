"""LoRA files: written so that hosts apply them at strength 1.0 as trained, read from any trainer.

SD 1.x and SDXL are written in kohya's form, with alpha = scale * rank. SD3 has no alpha (A1111's
loader fails on one): the scale is in `up`, and q, k and v form one exact block-diagonal update.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from .atomic_write import atomic_path
from .errors import CheckpointError, LoraError, OutputError
from .families.base import Config, Family
from .hashes import EMPTY_AUTOV1, legacy_hash, modelspec_hash, tensor_bytes_hash
from .lora_keys import LoraModule, adapter_alpha, detect_family, group_keys
from .lora_math import QKV, LoraPair, block_diagonal, cast, delta, with_alpha, with_scale_in_up
from .lora_metadata import NetworkFacts, lora_metadata
from .lora_targets import part_of, resolve, swap_halves, targets_by_name
from .recipe import Recipe, read_recipe
from .tensor_file import read_header

Format = Literal["kohya", "peft"]
PEFT_PREFIXES = {"UNet2DConditionModel": "unet.", "SD3Transformer2DModel": "transformer."}
PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def write_lora(
    path: Path,
    family: Family,
    network_config: Config,
    weights: Mapping[str, LoraPair],
    *,
    recipe: Recipe,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
    format: Format = "kohya",
    overwrite: bool = False,
) -> Path:
    """Write the LoRA with its recipe, metadata and hashes in one atomic move; returns its path.

    Args:
        weights: trained pairs by full diffusers module name.
        metadata: `training_metadata` and whatever else the file shall say.
        format: "kohya" for hosts, "peft" for diffusers.

    Raises:
        OutputError: the place cannot be written or holds a file and `overwrite` is off.
        NonFiniteError: a weight is NaN, infinite, or too large for `dtype`.
    """
    path = Path(path)
    check_output(path, overwrite)
    tensors = lora_tensors(family, network_config, weights, dtype, format)
    facts = _network_facts(path.stem, network_config, weights)
    described = lora_metadata(recipe, facts, metadata or {})
    content = serialize(tensors, described)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for chunk in content:
            file.write(chunk)
    return path


def check_output(path: Path, overwrite: bool) -> None:
    """Raise unless `path` may become a file: no folder, and free or to be overwritten."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of the .safetensors file to write.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already. Choose another name, or pass --overwrite.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist; create it or name another.")


def lora_tensors(
    family: Family,
    config: Config,
    weights: Mapping[str, LoraPair],
    dtype: torch.dtype,
    format: Format,
) -> dict[str, Tensor]:
    """The file's tensors by key, in their final dtype (alpha always fp32, so that it is exact)."""
    if not weights:
        raise LoraError("There are no LoRA weights to write.")
    checked = {name: pair.check(name) for name, pair in weights.items()}
    if format == "peft":
        prefix = PEFT_PREFIXES[family.network]
        baked = {prefix + name: with_scale_in_up(pair) for name, pair in checked.items()}
        return _halves(baked, dtype, ".lora_A.weight", ".lora_B.weight")
    if family.name == "sd3":
        fused = _fused(family, config, checked)
        return _halves(fused, dtype, ".lora_down.weight", ".lora_up.weight")
    alpha = common_alpha(checked)
    named = {
        family.lora_key(name, config).name: with_alpha(pair, alpha)
        for name, pair in checked.items()
    }
    tensors = _halves(named, dtype, ".lora_down.weight", ".lora_up.weight")
    return tensors | {f"{name}.alpha": torch.tensor(alpha) for name in named}


def common_alpha(weights: Mapping[str, LoraPair]) -> float:
    """The one alpha that all modules of a file get: most modules' own scale * rank.

    diffusers misses differing alphas of attention layers (it looks for them under older names).
    """
    counts = Counter(pair.scale * pair.rank for pair in weights.values() if pair.scale)
    return float(counts.most_common(1)[0][0]) if counts else 1.0


def _halves(
    pairs: Mapping[str, LoraPair], dtype: torch.dtype, down: str, up: str
) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in pairs.items():
        stored = cast(pair, dtype, name)
        tensors[name + down], tensors[name + up] = stored.down, stored.up
    return tensors


def _fused(family: Family, config: Config, weights: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """Pairs under the checkpoint's names, scale in `up`; q, k and v joined."""
    single: dict[str, LoraPair] = {}
    parts: dict[str, dict[str, LoraPair]] = {}
    for module, pair in weights.items():
        key = family.lora_key(module, config)
        if key.part is not None:
            parts.setdefault(key.name, {})[QKV[key.part]] = pair
            continue
        baked = with_scale_in_up(pair)
        if family.tensor_source(f"{module}.weight", config).change == "swap_halves":
            baked = LoraPair(baked.down, swap_halves(baked.up))
        single[key.name] = baked
    return single | {name: block_diagonal(found) for name, found in parts.items()}


def _network_facts(name: str, config: Config, weights: Mapping[str, LoraPair]) -> NetworkFacts:
    largest = max(weights.values(), key=lambda pair: pair.rank)
    return NetworkFacts(
        name=name,
        rank=largest.rank,
        alpha=common_alpha(weights),
        has_convolutions=any(pair.down.shape[2:].numel() > 1 for pair in weights.values()),
        is_sd35=bool(config.get("dual_attention_layers")),
    )


def serialize(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The file's header and body, its own hashes among the metadata.

    The hashes cover the tensor bytes alone, so they can be computed first and stored beside them.
    """
    plain = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", plain[:8])
    entries, body = json.loads(plain[8 : 8 + length]), memoryview(plain)[8 + length :]
    trainer = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    model_hash = tensor_bytes_hash(body)
    legacy = legacy_hash(_header(entries, trainer) + bytes(body[: 2 << 20]))
    hashes = {
        "sshs_model_hash": model_hash,
        "modelspec.hash_sha256": modelspec_hash(model_hash),
    }
    if legacy != EMPTY_AUTOV1:  # it would name every small file alike
        hashes["sshs_legacy_hash"] = legacy
    return [_header(entries, {**metadata, **hashes}), body]


def _header(entries: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    table = {"__metadata__": dict(metadata), **entries}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it lies on disk, its modules found by name; nothing is known of a network yet.

    Args:
        family: sd1, sdxl, sd3, the name of another family, or "" where names and shapes do not say.
        text_encoder_keys: tensors for text encoders, which are not applied here.
    """

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, str]
    modules: dict[str, LoraModule]
    family: str
    text_encoder_keys: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe | None:
        """The sampling recipe in the file, if it has one; raises RecipeError if it is broken."""
        return read_recipe(self.metadata)

    def pair(self, module: LoraModule) -> LoraPair:
        """The low-rank pair of one module, with its scale at strength 1.0."""
        missing = {"down", "up"} - set(module.keys)
        if missing or "mid" in module.keys:
            problem = f"no {missing.pop()} half" if missing else "a middle (Tucker) tensor"
            raise LoraError(
                f"{self.path.name}: {module.name} has {problem}; plain pairs are handled here."
            )
        down, up = (self.state[module.keys[half]] for half in ("down", "up"))
        scale = 1.0
        if "alpha" in module.keys:
            scale = float(self.state[module.keys["alpha"]].float().reshape(-1)[0]) / down.shape[0]
        elif (alpha := adapter_alpha(self.metadata, self.path.name)) is not None:
            scale = alpha / down.shape[0]
        return LoraPair(down, up, scale).check(f"{self.path.name}: {module.name}")


def read_lora(path: Path) -> LoraFile:
    """The LoRA file at `path`; LoraError if it is anything else."""
    path = Path(path)
    if path.suffix.lower() in PICKLES and path.is_file():
        raise LoraError(
            f"{path.name} is a pickle file, which can run any code when opened, so it is refused. "
            "Get the .safetensors version, or convert it once in a tool you trust."
        )
    try:
        header = read_header(path)
        modules, text_encoder_keys = group_keys(header.tensors, path.name)
        state = safetensors.torch.load_file(path)
    except (CheckpointError, safetensors.SafetensorError) as error:
        raise LoraError(f"The LoRA cannot be read. {error}") from error
    if not modules:
        raise LoraError(f"{path.name} changes text encoders only; there is nothing to apply.")
    shapes = {key: info.shape for key, info in header.tensors.items()}
    family = detect_family(modules, shapes) or _declared_family(header.metadata)
    return LoraFile(path, state, header.metadata, modules, family, tuple(text_encoder_keys))


def _declared_family(metadata: Mapping[str, str]) -> str:
    version = metadata.get("ss_base_model_version", "")
    known = {"sdxl_": "sdxl", "sd3": "sd3", "sd_v1": "sd1"}
    return next((family for start, family in known.items() if version.startswith(start)), "")


def check_family(lora: LoraFile, family: Family) -> None:
    """LoraError if the LoRA is known to be of another family."""
    if lora.family and lora.family != family.name:
        raise LoraError(
            f"{lora.path.name} is a LoRA for {lora.family}, but the model is {family.label}. "
            "A LoRA fits models of its own family only."
        )


def lora_deltas(
    lora: LoraFile,
    family: Family,
    config: Config,
    shapes: Mapping[str, torch.Size],
    strength: float = 1.0,
) -> dict[str, LoraPair]:
    """What the LoRA adds to each module of a network: W + scale * up @ down, strength in `scale`.

    Args:
        config: the diffusers configuration of the network.
        shapes: shape of the weight of every module of the network, by diffusers name.
    """
    check_family(lora, family)
    targets = resolve(lora.modules, targets_by_name(shapes, family, config), lora.path.name)
    found: dict[str, LoraPair] = {}
    for name, module in lora.modules.items():
        pair = lora.pair(module)
        for target in targets[name]:
            shape = shapes[target.module]
            share = part_of(pair, target, shape)
            if share.up.shape[0] * share.down[0].numel() != shape.numel():
                raise LoraError(
                    f"{lora.path.name}: {name} has sizes {tuple(pair.down.shape)} and "
                    f"{tuple(pair.up.shape)}, which do not fit the model's {tuple(shape)}. It was "
                    "made for another model."
                )
            found[target.module] = LoraPair(share.down, share.up, share.scale * strength)
    return found


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

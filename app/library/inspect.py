"""What a checkpoint or LoRA file is, read off its bytes without torch: the `inspect` command."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...core.errors import CheckpointError, LoraError, RecipeError
from ...core.families import check_own_parts, identify
from ...core.families.lora_names import LORA_KEY
from ...core.files.hashes import EMPTY_AUTOV1, Progress, file_hashes
from ...core.files.tensor_file import DTYPE_BITS, TensorFile, read_header
from ...core.lora.contents import read_contents
from ...core.recipe.recipe import METADATA_KEY, read_recipe, usage_hint

Facts = dict[str, object]
SHOWN_CHARACTERS = 300


def inspect(path: Path, progress: Progress | None = None, *, hashed: bool = True) -> Facts:
    """Facts of a model file (or diffusers folder) as plain data, ready for JSON.

    A file that is sound but cannot be used here has its reason under "problem".

    Args:
        progress: called with bytes hashed and bytes in all.
        hashed: whether to read all of the file for its hashes; without them only its header is.

    Raises:
        CheckpointError: the file is missing, damaged, or not a safetensors file.
    """
    path = Path(path)
    if os.path.isdir(path):
        return {"file": str(path), "kind": "diffusers folder", **_detection(path)}
    header = read_header(path)
    is_lora = any(LORA_KEY.search(key) for key in header.tensors)
    facts: Facts = {"file": str(path), "bytes": path.stat().st_size}
    facts |= _lora(header) if is_lora else _checkpoint(header)
    facts |= _tensors(header)
    if hashed:
        facts["hashes"] = _hashes(header, progress)
    facts |= _recipe(header.metadata)
    facts["metadata"] = {k: v for k, v in header.metadata.items() if k != METADATA_KEY}
    return facts


def _checkpoint(header: TensorFile) -> Facts:
    try:
        return {"kind": "checkpoint", **_detection(header.path)}
    except CheckpointError as error:
        return {"kind": "other model file", "problem": str(error)}


def _detection(path: Path) -> Facts:
    found, problem = identify(path), ""
    try:
        found = check_own_parts(path)
    except CheckpointError as error:
        problem = str(error)
    names = ("family", "title", "prediction", "zero_terminal_snr", "resolution", "latent_channels",
             "text_encoders", "vae")  # fmt: skip
    facts: Facts = {name: getattr(found, name) for name in names}
    facts |= {"text_encoders": list(found.text_encoders)}
    facts |= {"notes": list(found.notes)} if found.notes else {}
    return facts | ({"problem": problem} if problem else {})


def _lora(header: TensorFile) -> Facts:
    try:
        contents = read_contents(header)
    except LoraError as error:
        return {"kind": "LoRA", "problem": str(error)}
    modules = contents.modules.values()
    downs = [module.keys["down"] for module in modules if "down" in module.keys]
    ranks = Counter(header.tensors[key].shape[0] for key in downs)
    return {
        "kind": "LoRA",
        "family": contents.family or None,
        "modules": len(modules),
        "text_encoder_tensors": len(contents.text_encoder_keys),
        **({"differences": len(contents.differences)} if contents.differences else {}),
        **({"embeddings": list(contents.embeddings)} if contents.embeddings else {}),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "scales": sorted({round(contents.scale(module), 6) for module in modules}),
    }


def _tensors(header: TensorFile) -> Facts:
    infos = list(header.tensors.values())
    dtypes = Counter(info.dtype for info in infos)
    return {
        "tensors": len(infos),
        "parameters": sum(info.count for info in infos),
        "dtypes": dict(dtypes.most_common()),
        "tensor_bytes": sum(info.count * DTYPE_BITS[info.dtype] // 8 for info in infos),
    }


def _hashes(header: TensorFile, progress: Progress | None) -> Facts:
    found = file_hashes(header.path, progress)
    facts: Facts = {
        "sha256": found.sha256,
        "autov1": None if found.autov1 == EMPTY_AUTOV1 else found.autov1,
        "autov2": found.autov2,
        "autov3": found.autov3,
        "tensors_sha256": found.tensors,
    }
    declared = header.metadata.get("sshs_model_hash")
    if declared is not None:
        facts["sshs_model_hash_is_true"] = declared.lower() == found.tensors
    return facts


def _recipe(metadata: Mapping[str, str]) -> Facts:
    try:
        recipe = read_recipe(metadata)
    except RecipeError as error:
        return {"recipe": None, "recipe_problem": str(error)}
    if recipe is None:
        return {"recipe": None}
    return {"recipe": json.loads(recipe.to_json()), "usage": usage_hint(recipe)}


def format_text(facts: Facts) -> str:
    """The facts as aligned lines for people; long metadata are shortened."""
    lines = list(_lines(facts))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def _lines(facts: Facts, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        label = prefix + (name if prefix == "metadata " else name.replace("_", " "))
        if isinstance(value, dict) and name in ("hashes", "recipe", "metadata"):
            yield from _lines(value, f"{name} ")
        elif value not in (None, "", [], {}):
            yield label, _text(name, value)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("bytes", "tensor_bytes", "parameters") and isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text("", item) if isinstance(item, dict) else str(item) for item in value)
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."

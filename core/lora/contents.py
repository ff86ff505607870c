"""What a LoRA file holds, told by its header and its alphas alone: one answer for all who ask.

`inspect`, the hosts' nodes, packaging and loading read a file through `read_contents`, so that each
refuses the same files with the same words. No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError, LoraError
from ..families import FAMILIES, Family
from ..files.tensor_file import TensorFile, read_header, read_scalar
from ..recipe.recipe import METADATA_KEY
from .encoder_names import encoder_modules
from .keys import DIFFERENCES, LoraModule, adapter_alpha, detect_family, group_keys
from .shapes import update_rank

DECLARING = ("ss_base_model_version", "modelspec.architecture")
"""What a file says of the model that it is for."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
NUMBERS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Formats that the weights of a LoRA may be stored in."""
EMBEDDING = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..*|[^.]*)$")


@dataclass(frozen=True)
class LoraContents:
    """A LoRA file, its modules found by name; nothing is known of a network yet.

    Attributes:
        modules: of the denoiser, by plain name.
        text_encoder_keys: tensors for text encoders.
        embeddings: names of the embeddings that are bundled with it; they are not applied here.
        family: one of ours, the name of another family, or "" where nothing says.
        alphas: value of every alpha by key.
    """

    header: TensorFile
    modules: dict[str, LoraModule]
    text_encoder_keys: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    family: str = ""
    alphas: Mapping[str, float] = field(default_factory=dict)
    _stated: dict[str, float | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def file_name(self) -> str:
        """Name of the file, for messages."""
        return self.header.path.name

    @property
    def differences(self) -> tuple[str, ...]:
        """The denoiser's tensors that are added as they are: changes of whole weights, biases."""
        parts = DIFFERENCES.values()
        found = [module.keys.get(part) for module in self.modules.values() for part in parts]
        return tuple(key for key in found if key is not None)

    def label(self, module: LoraModule) -> str:
        """File and module, for messages."""
        return f"{self.file_name}: {module.name}"

    def rank(self, module: LoraModule) -> int | None:
        """What the module's alpha is divided by; None where its kind has no scale.

        Raises:
            LoraError: a tensor is missing, or sizes contradict each other.
        """
        tensors = self.header.tensors
        parts = {p: tensors[key].shape for p, key in module.keys.items() if p != "alpha"}
        return update_rank(parts, self.label(module))

    def scale(self, module: LoraModule, text_encoder: str = "") -> float:
        """What the module's update is multiplied by at strength 1.0.

        Args:
            text_encoder: diffusers' name of the encoder that the module is part of, if it is.

        Raises:
            LoraError: as `rank`, or the file's metadata state alphas that are not handled.
        """
        rank = self.rank(module)
        if rank is None:
            return 1.0
        key = module.keys.get("alpha")
        if key is not None:
            return self.alphas[key] / rank
        if text_encoder not in self._stated:  # read once: it may be long
            found = adapter_alpha(self.header.metadata, self.file_name, text_encoder)
            self._stated[text_encoder] = found
        found = self._stated[text_encoder]
        return 1.0 if found is None else found / rank

    def embedding_note(self) -> str:
        """What is to be said of bundled embeddings; empty where there are none."""
        if not self.embeddings:
            return ""
        named = ", ".join(repr(name) for name in self.embeddings)
        return (
            f"{self.file_name} brings embeddings along ({named}), which are not applied here: "
            "in a prompt their names are plain words."
        )


def read_lora_header(path: Path) -> LoraContents:
    """What the LoRA file at `path` holds, by its header.

    Raises:
        LoraError: it is anything else, or of a kind that is not handled.
    """
    if path.suffix.lower() in PICKLES and path.is_file():
        raise LoraError(
            f"{path.name} is a pickle file, which can run any code when opened, so it is refused. "
            "Get the .safetensors version, or convert it once in a tool you trust."
        )
    try:
        return read_contents(read_header(path))
    except CheckpointError as error:
        raise LoraError(f"The LoRA cannot be read. {error}") from error


def read_teacher_header(path: Path) -> LoraContents:
    """The same for a LoRA that shall be a part of a teacher.

    Raises:
        LoraError: as `read_lora_header`, and for a few-step LoRA of ours.
    """
    contents = read_lora_header(path)
    refuse_few_step(contents)
    return contents


def refuse_few_step(contents: LoraContents) -> None:
    """LoraError for a few-step LoRA of ours, which is no part of a teacher."""
    if METADATA_KEY in contents.header.metadata:
        raise LoraError(
            f"{contents.file_name} is a few-step LoRA that DP-DMD made, not a style: with it the "
            "teacher would be a student already. Leave it out; to distil anew, give the "
            "checkpoint alone."
        )


def check_family(contents: LoraContents, family: Family) -> None:
    """LoraError if the LoRA is known to be of another family."""
    if contents.family and contents.family != family.name:
        raise LoraError(
            f"{contents.file_name} is a LoRA for {contents.family}, but the model is "
            f"{family.label}. A LoRA fits models of its own family only."
        )


def read_contents(header: TensorFile) -> LoraContents:
    """What the LoRA file with this header holds, be it for the denoiser, text encoders or both.

    Raises:
        LoraError: it is no LoRA, or damaged.
        UnsupportedLoraError: of a kind, or with names, that are not handled here.
    """
    name = header.path.name
    bundled = [key for key in header.tensors if key.startswith("bundle_emb.")]
    others = [key for key in header.tensors if key not in set(bundled)]
    if bundled and not others:
        raise LoraError(
            f"{name} holds embeddings only ({bundled[0]!r}), no LoRA. Put them into the host's "
            "embeddings folder; they cannot be merged here."
        )
    modules, of_encoders, text_encoder_keys = group_keys(others, name)
    shapes = {key: info.shape for key, info in header.tensors.items()}
    contents = LoraContents(
        header,
        modules,
        tuple(text_encoder_keys),
        tuple(dict.fromkeys(_embedding(key) for key in bundled)),
        _family(modules, shapes, header.metadata),
        _alphas(header, [*modules.values(), *of_encoders.values()]),
    )
    _check_numbers(header, others)
    for module in modules.values():
        contents.scale(module)
    for module in of_encoders.values():
        contents.rank(module)
    for item in FAMILIES:
        if item.name == contents.family:
            encoder_modules(text_encoder_keys, item, name)
    return contents


def _embedding(key: str) -> str:
    found = EMBEDDING.match(key)
    return found[1] if found else key


def _check_numbers(header: TensorFile, keys: Iterable[str]) -> None:
    """LoraError for weights whose stored numbers mean nothing by themselves."""
    for key in keys:
        dtype = header.tensors[key].dtype
        if dtype not in NUMBERS and not key.endswith(".alpha"):
            raise LoraError(
                f"{header.path.name}: {key!r} is stored as {dtype}, which no LoRA can be read "
                f"from here. Supported: {', '.join(NUMBERS)}."
            )


def _alphas(header: TensorFile, modules: Iterable[LoraModule]) -> dict[str, float]:
    found = {}
    with header.path.open("rb") as file:
        for module in modules:
            key = module.keys.get("alpha")
            if key is None:
                continue
            value = read_scalar(file, header, key)
            if value is None or not math.isfinite(value):
                info = header.tensors[key]
                what = f"{info.dtype} of shape {info.shape}" if value is None else f"{value:g}"
                raise LoraError(
                    f"{header.path.name}: {module.name}: its alpha is not a finite number, but "
                    f"{what}. The file is damaged; download it again."
                )
            found[key] = value
    return found


def _family(
    modules: Mapping[str, LoraModule],
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str],
) -> str:
    """As `detect_family`; what the file says of itself decides where names do not."""
    found = detect_family(modules, shapes) or _declared_family(metadata)
    relatives = next((f.lora.relatives for f in FAMILIES if f.name == found), {})
    said = [metadata.get(key, "").lower() for key in DECLARING]
    for beginning, relative in relatives.items():
        if any(text.startswith(beginning) for text in said):
            return relative
    return found


def _declared_family(metadata: Mapping[str, str]) -> str:
    version = metadata.get("ss_base_model_version", "")
    return next((f.name for f in FAMILIES if version.startswith(f.lora.declared or ("\0",))), "")

"""Diffusers model folders: their components, configs and headers; no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, UnsupportedModelError
from ..files.tensor_file import CONVERT_HINT, TensorFile, read_header
from .base import Detection, Family, TextEncoder
from .sd3 import max_resolution
from .unsupported import SUPPORTED

MAX_JSON_BYTES = 50_000_000
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
CLASS_OF_PREDICTION = {"epsilon": "eps", "v_prediction": "v"}


@dataclass(frozen=True)
class FolderComponent:
    """One sub-folder: its config.json and the headers of its file or shards."""

    config: dict[str, object]
    files: tuple[TensorFile, ...]


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder with model_index.json."""

    path: Path
    index: dict[str, object]
    scheduler: dict[str, object]

    def has(self, name: str) -> bool:
        """Whether the folder brings component `name`, for example "text_encoder_2"."""
        entry = self.index.get(name)
        present = isinstance(entry, list) and entry[:1] != [None]
        return present and (self.path / name / "config.json").is_file()

    def component(self, name: str) -> FolderComponent:
        """Config and headers of one component.

        Raises:
            CheckpointError: its weights are missing or damaged.
        """
        folder = self.path / name
        return FolderComponent(_read_json(folder / "config.json"), _weight_files(folder))


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a diffusers folder."""
    return (path / "model_index.json").is_file()


def read_folder(path: Path) -> ModelFolder:
    """The diffusers folder at `path`."""
    scheduler = path / "scheduler" / "scheduler_config.json"
    return ModelFolder(
        path,
        _read_json(path / "model_index.json"),
        _read_json(scheduler) if scheduler.is_file() else {},
    )


def detect_folder(folder: ModelFolder, families: Mapping[str, Family]) -> Detection:
    """Family and variant of a diffusers folder, from its configs.

    Raises:
        UnsupportedModelError: a pipeline or variant that is not supported.
    """
    name = "transformer" if folder.has("transformer") else "unet"
    if not folder.has(name):
        raise CheckpointError(
            f"{folder.path.name}/ has no denoiser (neither unet/ nor transformer/ with a "
            "config.json). Give a complete diffusers folder."
        )
    config = _read_json(folder.path / name / "config.json")
    family = families[_family_name(folder, config)]
    prediction, zero_snr = _prediction(folder, family)
    title = family.label if family.name != "sd3" else _sd3_title(config)
    title += " (v-prediction)" if prediction == "v" else ""
    limit = None
    if family.name == "sd3":
        limit = max_resolution(
            _int(config.get("pos_embed_max_size"), 192), _int(config.get("patch_size"), 2)
        )
    vae = _read_json(folder.path / "vae" / "config.json") if folder.has("vae") else None
    return Detection(
        family=family.name,
        title=title.replace("on)", "on, zero terminal SNR)") if zero_snr else title,
        prediction=prediction,  # type: ignore[arg-type]
        latent_channels=_int(config.get("in_channels"), 4),
        denoiser_prefix="",
        resolution=min(family.resolution, limit or family.resolution),
        max_resolution=limit,
        resolution_multiple=family.resolution_multiple,
        zero_terminal_snr=zero_snr,
        text_encoders=tuple(
            kind for kind, part in encoder_folders(family).items() if folder.has(part)
        ),
        vae=None if vae is None else "tiny" if "Tiny" in str(vae.get("_class_name")) else "kl",
        folder=True,
    )


def encoder_folders(family: Family) -> dict[TextEncoder, str]:
    """Which sub-folder holds which text encoder."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return dict(zip(family.text_encoders, names, strict=False))


def _family_name(folder: ModelFolder, config: dict[str, object]) -> str:
    channels, width = _int(config.get("in_channels"), 4), config.get("cross_attention_dim")
    kind, pipeline = str(config.get("_class_name")), str(folder.index.get("_class_name"))
    if kind == "SD3Transformer2DModel" and channels == 16 and config.get("num_layers") != 38:
        return "sd3"
    if kind == "UNet2DConditionModel" and channels == 4 and "Inpaint" not in pipeline:
        if (
            config.get("addition_embed_type") == "text_time"
            and config.get("encoder_hid_dim") is None
        ):
            return "sdxl"
        if config.get("addition_embed_type") is None and width != 1024:
            return "sd1"
    raise UnsupportedModelError(
        f"{folder.path.name}/ is a {pipeline} with a {kind} of {channels} input channels and text "
        f"width {width}, which is not supported. {SUPPORTED}."
    )


def _sd3_title(config: dict[str, object]) -> str:
    return "SD3.5 medium" if config.get("dual_attention_layers") else "SD3 medium"


def _prediction(folder: ModelFolder, family: Family) -> tuple[str, bool]:
    if family.schedule == "flow":
        return "flow", False
    stated = str(folder.scheduler.get("prediction_type", "epsilon"))
    if stated not in CLASS_OF_PREDICTION:
        raise UnsupportedModelError(
            f"{folder.path.name}/ predicts {stated!r}; supported are epsilon and v_prediction."
        )
    zero_snr = stated == "v_prediction" and bool(folder.scheduler.get("rescale_betas_zero_snr"))
    return CLASS_OF_PREDICTION[stated], zero_snr


def _weight_files(folder: Path) -> tuple[TensorFile, ...]:
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.safetensors.index.json"
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            shards = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
            if not shards or not all(Path(shard).name == shard for shard in shards):
                raise CheckpointError(f"{index} is damaged: its weight_map does not name files.")
            return tuple(read_header(folder / shard) for shard in sorted(shards))
        for suffix in ("", ".fp16", ".bf16", ".non_ema"):
            file = folder / f"{name}{suffix}.safetensors"
            if file.is_file():
                return (read_header(file),)
    if any(folder.glob("*.bin")):
        raise UnsupportedModelError(f"{folder}/ holds pickled weights (.bin). {CONVERT_HINT}")
    raise CheckpointError(f"{folder}/ holds no .safetensors weights. Download the folder again.")


def _read_json(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is too large for a config file.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {error}. Download the model folder again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: a JSON object was expected.")
    return value


def _int(value: object, default: int) -> int:
    return value if isinstance(value, int) else default

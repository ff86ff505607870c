"""Diffusers model folders: their components, configs and headers; no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, UnsupportedModelError
from ..files.tensor_file import CONVERT_HINT, TensorFile, read_header
from .base import Detection, Family
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


def detect_folder(folder: ModelFolder, families: Sequence[Family]) -> Detection:
    """Family and variant of a diffusers folder, from its configs.

    Raises:
        UnsupportedModelError: a pipeline or variant that is not supported.
    """
    places = list(dict.fromkeys(family.layout.denoiser_folder for family in families))
    name = next((place for place in places if folder.has(place)), None)
    if name is None:
        named = " nor ".join(f"{place}/" for place in reversed(places))
        raise CheckpointError(
            f"{folder.path.name}/ has no denoiser (neither {named} with a "
            "config.json). Give a complete diffusers folder."
        )
    config = _read_json(folder.path / name / "config.json")
    family = _family(folder, config, families)
    prediction, zero_snr = _prediction(folder, family)
    facts = family.detection.describe_folder(config)
    title = f"{facts['title']}{' (v-prediction)' if prediction == 'v' else ''}"
    limit = facts.get("max_resolution")
    limit = limit if isinstance(limit, int) else None
    sampling = family.sampling
    vae = _read_json(folder.path / "vae" / "config.json") if folder.has("vae") else None
    return Detection(
        family=family.name,
        title=title.replace("on)", "on, zero terminal SNR)") if zero_snr else title,
        prediction=prediction,  # type: ignore[arg-type]
        latent_channels=_int(config.get("in_channels"), 4),
        denoiser_prefix="",
        resolution=min(sampling.resolution, limit or sampling.resolution),
        max_resolution=limit,
        resolution_multiple=sampling.resolution_multiple,
        zero_terminal_snr=zero_snr,
        text_encoders=tuple(
            kind for kind, part in encoder_folders(family).items() if folder.has(part)
        ),
        vae=None if vae is None else "tiny" if "Tiny" in str(vae.get("_class_name")) else "kl",
        folder=True,
    )


def encoder_folders(family: Family) -> dict[str, str]:
    """Which sub-folder holds which text encoder."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return dict(zip(family.text.encoders, names, strict=False))


def _family(folder: ModelFolder, config: dict[str, object], families: Sequence[Family]) -> Family:
    pipeline = str(folder.index.get("_class_name"))
    for family in families:
        if family.detection.matches_folder(config, pipeline):
            return family
    kind, width = str(config.get("_class_name")), config.get("cross_attention_dim")
    channels = _int(config.get("in_channels"), 4)
    raise UnsupportedModelError(
        f"{folder.path.name}/ is a {pipeline} with a {kind} of {channels} input channels and text "
        f"width {width}, which is not supported. {SUPPORTED}."
    )


def _prediction(folder: ModelFolder, family: Family) -> tuple[str, bool]:
    if family.sampling.schedule == "flow":
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

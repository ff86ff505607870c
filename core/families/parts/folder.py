"""Diffusers model folders: their components, configs and headers; no torch."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import CheckpointError, UnsupportedModelError
from ...files.tensor_file import CONVERT_HINT, TensorFile, read_model_header
from ..base import Detection, Family
from ..few_step_names import few_step_notes
from ..prediction import full_title, name_notes
from ..unsupported import SUPPORTED, refuse_empty, refuse_extra_inputs, refuse_quantised
from .scheduler import few_step_scheduler, read_scheduler
from .vae import check_vae_config, folder_vae

MAX_JSON_BYTES = 50_000_000
WEIGHT_NAMES = r"(?:diffusion_pytorch_model|model|pytorch_model)"
VARIANT = r"(?:\.(?P<variant>[\w-]+?))?"
"""What a hub puts behind the name of a smaller or other copy, as in `model.fp16.safetensors`."""
INDEX = re.compile(
    rf"{WEIGHT_NAMES}(?:{VARIANT}\.safetensors\.index\.json"
    rf"|\.safetensors\.index{VARIANT.replace('variant', 'later')}\.json)"
)
SHARD = re.compile(
    rf"(?P<stem>{WEIGHT_NAMES}{VARIANT})-\d{{5}}-of-(?P<count>\d{{5}})"
    rf"(?P<tail>{VARIANT.replace('variant', 'later')}\.safetensors)"
)
WHOLE = re.compile(rf"{WEIGHT_NAMES}{VARIANT}\.safetensors")
PREFERRED = ("", "fp32", "fp16", "bf16", "non_ema")
"""Of several copies of the weights the first of these is read, then any other."""
ENCODER_FOLDERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


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
    places = _denoiser_folders(families)
    name = next((place for place in places if folder.has(place)), None)
    if name is None:
        named = " nor ".join(f"{place}/" for place in reversed(places))
        raise CheckpointError(
            f"{folder.path.name}/ has no denoiser (neither {named} with a "
            "config.json). Give a complete diffusers folder."
        )
    denoiser = folder.component(name)
    config, weights = denoiser.config, {k: v for f in denoiser.files for k, v in f.tensors.items()}
    refuse_empty(f"{folder.path.name}/{name}", "", weights)
    refuse_quantised(f"{folder.path.name}/{name}", weights)
    family = _family(folder, config, families)
    label = f"{folder.path.name}/{name}/config.json"
    family.detection.check_folder(config, label)
    refuse_extra_inputs(folder.path.name, weights)
    said = read_scheduler(folder.scheduler, family, folder.path.name)
    notes = said.notes
    facts = family.detection.describe_folder(config)
    limit = facts.get("max_resolution")
    limit = limit if isinstance(limit, int) else None
    sampling = family.sampling
    parts = {
        part: folder.component(part)
        for part in encoder_folders(family).values()
        if folder.has(part)
    }
    vae = folder.component("vae") if folder.has("vae") else None
    channels, kind = _int(config.get("in_channels"), 4), None
    if vae is not None:
        vae_label = f"{folder.path.name}/vae"
        notes += check_vae_config(vae.config, family.vae, f"{vae_label}/config.json")
        kind, more = folder_vae(vae.config, vae.files, channels, vae_label)
        notes += more
    predictions = sampling.predictions
    found = Detection(
        family=family.name,
        title=full_title(str(facts["title"]), said.prediction, said.zero_terminal_snr, predictions),
        prediction=said.prediction,  # type: ignore[arg-type]
        shift=said.shift,
        latent_channels=channels,
        denoiser_prefix="",
        resolution=min(sampling.resolution, limit or sampling.resolution),
        max_resolution=limit,
        resolution_multiple=sampling.resolution_multiple,
        zero_terminal_snr=said.zero_terminal_snr,
        text_encoders=tuple(
            kind for kind, part in encoder_folders(family).items() if part in parts
        ),
        vae=kind,
        folder=True,
        notes=notes,
    )
    hints = () if few_step_scheduler(folder.scheduler) else few_step_notes(folder.path.name, {})
    if not folder.scheduler:
        hints += name_notes(found, predictions, folder.path.name)
    return replace(found, notes=(*found.notes, *hints))


def encoder_folders(family: Family) -> dict[str, str]:
    """Which sub-folder holds which text encoder."""
    return dict(zip(family.text.encoders, ENCODER_FOLDERS, strict=False))


def encoder_prefix(files: Sequence[TensorFile]) -> str:
    """What a folder's text encoder has before its names: a whole language model's has a part."""
    place = "model."
    whole = any(name.startswith(f"{place}embed_tokens.") for f in files for name in f.tensors)
    return place if whole else ""


def folder_files(folder: ModelFolder, families: Sequence[Family]) -> Iterator[TensorFile]:
    """Headers of the weights that are read of a folder."""
    for name in (*_denoiser_folders(families), *ENCODER_FOLDERS, "vae"):
        if folder.has(name):
            yield from folder.component(name).files


def _denoiser_folders(families: Sequence[Family]) -> list[str]:
    return list(dict.fromkeys(family.layout.denoiser_folder for family in families))


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


def _weight_files(folder: Path) -> tuple[TensorFile, ...]:
    """Headers of the first copy of the weights that is there as a whole."""
    copies = sorted(_copies(folder), key=lambda copy: _preference(copy.variant))
    for copy in copies:
        if all(file.is_file() for file in copy.files):
            return tuple(map(read_model_header, copy.files))
    for copy in copies:
        missing = next(file.name for file in copy.files if not file.is_file())
        raise CheckpointError(
            f"{folder}/ lacks {missing}, of which {copy.named_by} speaks. Download the folder "
            "again."
        )
    if any(folder.glob("*.bin")):
        raise UnsupportedModelError(f"{folder}/ holds pickled weights (.bin). {CONVERT_HINT}")
    raise CheckpointError(f"{folder}/ holds no .safetensors weights. Download the folder again.")


@dataclass(frozen=True)
class _Copy:
    """One of the ways in which a sub-folder's weights may lie there."""

    variant: str
    named_by: str
    files: tuple[Path, ...]


def _preference(variant: str) -> tuple[int, str]:
    known = variant in PREFERRED
    return (PREFERRED.index(variant) if known else len(PREFERRED), variant)


def _copies(folder: Path) -> Iterator[_Copy]:
    """Copies by an index, then single files, then shards without an index."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        if match := INDEX.fullmatch(name):
            variant = match["variant"] or match["later"] or ""
            yield _Copy(variant, name, _indexed(folder / name))
    for name in names:
        if not SHARD.fullmatch(name) and (match := WHOLE.fullmatch(name)):
            yield _Copy(match["variant"] or "", name, (folder / name,))
    for name in names:
        if match := SHARD.fullmatch(name):
            stem, count, tail = match["stem"], match["count"], match["tail"]
            numbers = range(1, int(count) + 1)
            files = tuple(folder / f"{stem}-{n:05}-of-{count}{tail}" for n in numbers)
            yield _Copy(match["variant"] or match["later"] or "", name, files)


def _indexed(index: Path) -> tuple[Path, ...]:
    weight_map = _read_json(index).get("weight_map")
    shards = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    if not shards or not all(Path(shard).name == shard for shard in shards):
        raise CheckpointError(f"{index} is damaged: its weight_map does not name files.")
    return tuple(index.parent / shard for shard in sorted(shards))


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

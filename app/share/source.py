"""What a package is asked to hold and made from: LoRA, checkpoint, prompts, measurements; checked.

Only headers and small files are read, so a front end can ask before anything is sampled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import CheckpointError, LoraError, RunError, SettingsError
from ...core.families import FAMILY_LABELS, Detection, identify, states
from ...core.files.tensor_file import read_header
from ...core.lora.contents import read_contents
from ...core.recipe.recipe import Recipe, is_plain_grid, read_recipe
from ..config.found_files import with_found_files
from ..config.request import DistillRequest, ModelFiles
from ..library.path_checks import typed_path
from ..runs.directory import RunDirectory

FEWEST_IMAGES, MOST_IMAGES = 6, 200
HOSTS_NAMES = ("lora_unet_", "diffusion_model.")
"""Before the names of a LoRA's tensors that hosts read."""
TEXT_LIMITS = {"name": 200, "author": 200, "license": 200, "trigger_words": 4000}


@dataclass(frozen=True, kw_only=True)
class PackageRequest:
    """What to package. Empty values take what the run, the LoRA or the family says.

    Args:
        source: a LoRA of ours, or the folder of the run that made it.
        output: the folder to make; the zip gets its name.
        files: paths of model files by name: checkpoint, clip_l, clip_g, t5, qwen, vae.
        prompts: what the images show.
        count: how many images.
        cover: which of them is the cover, from 1.
        label: base model as Civitai calls it.
        report: report.json to quote diversity and speed from.
    """

    source: Path
    output: Path
    files: dict[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    count: int = 8
    seeds: tuple[int, ...] = ()
    cover: int = 1
    name: str = ""
    author: str = ""
    license: str = ""
    label: str = ""
    trigger_words: str = ""
    with_loras: tuple[tuple[str, float], ...] = ()
    report: Path | None = None
    batch_size: int = 4
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False

    def check(self) -> None:
        """Raise SettingsError for what cannot be packaged."""
        if not FEWEST_IMAGES <= self.count <= MOST_IMAGES:
            raise SettingsError(
                f"{self.count} images were asked for; a package has {FEWEST_IMAGES} to "
                f"{MOST_IMAGES}."
            )
        if not 1 <= self.cover <= self.count:
            raise SettingsError(
                f"Image {self.cover} shall be the cover, but there are images 1 to {self.count}."
            )
        for name, limit in TEXT_LIMITS.items():
            length = len(getattr(self, name))
            if length > limit:
                raise SettingsError(
                    f"{name.replace('_', ' ')} has {length} characters; at most {limit} fit."
                )


def image_pairs(num_prompts: int, seeds: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    """(prompt number from 0, seed) of each image, no two alike; neighbours differ in both.

    Raises:
        SettingsError: there are fewer combinations than images.
    """
    seeds = list(seeds) or list(range(count))
    prompts = min(num_prompts, count)
    if prompts * len(seeds) < count:
        raise SettingsError(
            f"{num_prompts} prompts and {len(seeds)} seeds make {prompts * len(seeds)} different "
            f"images; {count} are asked for. Give more prompts or seeds, or lower --count."
        )
    return tuple(
        (number % prompts, seeds[(number // prompts + number % prompts) % len(seeds)])
        for number in range(count)
    )


@dataclass(frozen=True, kw_only=True)
class PackageSource:
    """What was found.

    Args:
        lora: the file to package.
        file_format: kohya or peft, by its key names.
        prompts: for the images, alternatives not yet chosen; may be empty for embedded teachers.
        embedded: whether the checkpoint is a teacher that ships with this program.
        notes: what a person should know of these choices.
    """

    lora: Path
    recipe: Recipe
    file_format: str
    model: ModelFiles
    detection: Detection
    embedded: bool
    prompts: tuple[str, ...]
    with_loras: tuple[tuple[str, float], ...]
    report: Path | None
    notes: tuple[str, ...] = ()


def find_source(request: PackageRequest) -> PackageSource:
    """Everything that a package needs, found and checked.

    Raises:
        DPDMDError: something is missing, or does not fit together.
    """
    path = Path(typed_path(str(request.source)))
    run = RunDirectory.open(path) if path.is_dir() else None
    asked = DistillRequest.from_dict(run.settings()) if run else None
    lora = _result_of(run) if run else path
    recipe, file_format = read_student(lora)
    model, found = with_found_files(_model(request, asked))
    detection = _checked_family(model, recipe, lora)
    checkpoint = Path(model.checkpoint)
    embedded = checkpoint.is_file() and states(read_header(checkpoint))
    prompts, notes = _prompts(request, run, embedded)
    return PackageSource(
        lora=lora,
        recipe=recipe,
        file_format=file_format,
        model=model,
        detection=detection,
        embedded=embedded,
        prompts=prompts,
        with_loras=request.with_loras or _merged(asked),
        report=request.report or _report_of(run),
        notes=(*notes, *found),
    )


def read_student(path: Path) -> tuple[Recipe, str]:
    """(recipe, kohya or peft) of a LoRA file that this program wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
        LoraError: it is no LoRA, has no recipe, or needs a sampler that hosts lack.
        RecipeError: its recipe is broken or of another version.
    """
    header = read_header(path)
    read_contents(header)
    recipe = read_recipe(header.metadata)
    if recipe is None:
        raise LoraError(
            f"{path.name} holds no recipe (dpdmd.recipe), so the settings that a package has to "
            "state are unknown. Only LoRAs that DP-DMD Studio made can be packaged; if this one "
            "was, take the original file, since some programs drop metadata."
        )
    if recipe.solver != "ode" or not is_plain_grid(recipe):
        raise LoraError(
            f"{path.name} needs the DP-DMD sampler: no host walks its sigmas with Euler and "
            "Simple. A package states settings that everybody can choose, so it cannot be made."
        )
    kohya = any(key.startswith(HOSTS_NAMES) for key in header.tensors)
    return recipe, "kohya" if kohya else "peft"


def _result_of(run: RunDirectory) -> Path:
    if not (run.path / "result.json").is_file():
        raise RunError(
            f"The run {run.path} has not written a LoRA yet. Finish it with `resume`, stop it "
            "so that it writes what there is, or name one of the files in its checkpoints folder."
        )
    named = run.read_json("result.json").get("lora")
    lora = Path(named) if isinstance(named, str) and named else None
    if lora is None or not lora.is_file():
        raise RunError(
            f"The run's LoRA {named} is not there any more. Name the file itself, wherever it is "
            "now, and its checkpoint."
        )
    return lora


def _model(request: PackageRequest, asked: DistillRequest | None) -> ModelFiles:
    if asked is None and not request.files.get("checkpoint"):
        raise SettingsError(
            "The images need the checkpoint that the LoRA was made for: name it behind the LoRA, "
            "or name the run's folder instead of the LoRA."
        )
    named = (dataclasses.asdict(asked.model) if asked else {}) | request.files
    files = {name: typed_path(file) for name, file in named.items() if file}
    for name, file in files.items():
        if not Path(file).exists():
            raise CheckpointError(
                f"There is no {name.replace('_', '-')} file {file}. If it was moved, name its new "
                "place."
            )
    return ModelFiles(**files)


def _checked_family(model: ModelFiles, recipe: Recipe, lora: Path) -> Detection:
    detection = identify(Path(model.checkpoint))
    if detection.family != recipe.family:
        raise LoraError(
            f"{lora.name} is a LoRA for {FAMILY_LABELS[recipe.family]}, but "
            f"{Path(model.checkpoint).name} is {detection.title}. Name the checkpoint that it was "
            "made for."
        )
    return detection


def _prompts(
    request: PackageRequest, run: RunDirectory | None, embedded: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(prompts, notes on them)."""
    if request.prompts:
        return request.prompts, ()
    if run is not None and (kept := run.evaluation_prompts()):
        return tuple(kept), ()
    if embedded:
        return (), ()
    if run is not None:
        note = "The run has no held-out prompts: the images show prompts that it was trained on."
        return tuple(run.prompts()), (note,)
    raise SettingsError(
        "The images need prompts: give a file with --prompts, or name the run's folder instead "
        "of the LoRA."
    )


def _merged(asked: DistillRequest | None) -> tuple[tuple[str, float], ...]:
    """The run's LoRAs that its student does not hold, so that they have to be on as well."""
    if asked is None or asked.include_teacher_loras:
        return ()
    return tuple((lora.path, float(lora.strength)) for lora in asked.teacher_loras)


def _report_of(run: RunDirectory | None) -> Path | None:
    report = run.report / "report.json" if run else None
    return report if report is not None and report.is_file() else None

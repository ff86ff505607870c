"""The recipe: a machine-readable sampling contract that travels inside the LoRA file.

It is one JSON object in the safetensors metadata under `dpdmd.recipe`. Hosts read it from files of
unknown origin, so reading checks every field, bounds every size, and answers anything else with a
RecipeError.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import RecipeError
from ..families import FAMILY_LABELS, family
from . import checks

METADATA_KEY = "dpdmd.recipe"
VERSION = 1
MAX_STEPS = 128
# Fields that came later, which stand in a recipe only where they say something.
LATER = ("real_guidance_scale", "real_guidance_interval")


@dataclass(frozen=True, kw_only=True)
class MergedLora:
    """A LoRA that was merged into the teacher before it was distilled.

    Args:
        name: its file's name.
        sha256: of the whole file; the first ten digits are its AutoV2 hash.
        autov3: first twelve digits of the SHA256 of its tensors, by which hosts know LoRAs.
        included: whether this file holds its update, too; if not, sampling needs it beside.
    """

    name: str
    strength: float
    sha256: str = ""
    autov3: str = ""
    included: bool = False

    def __post_init__(self) -> None:
        checks.text(self.name, "merged_loras.name", checks.MAX_NAME)
        checks.number(self.strength, "merged_loras.strength", -100, 100)
        checks.hex_text(self.sha256, "merged_loras.sha256", 64)
        checks.hex_text(self.autov3, "merged_loras.autov3", 12)
        checks.boolean(self.included, "merged_loras.included")


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The teacher's point step one is pulled towards: level t_k, after `steps` of `grid` steps."""

    sigma: float
    timestep: float
    steps: int
    grid: int

    def __post_init__(self) -> None:
        checks.number(self.sigma, "anchor.sigma", 0, 1e5)
        checks.number(self.timestep, "anchor.timestep", 0, 1000)
        checks.whole(self.grid, "anchor.grid", 1, 10_000)
        checks.whole(self.steps, "anchor.steps", 1, self.grid)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the student was trained to be sampled, and from which teacher.

    Args:
        sigmas: N + 1 decreasing noise levels of the k-diffusion convention, the last one 0.
        timesteps: what the network is fed at each of the N steps.
        guidance_scale: guidance while sampling; 1.0 is off.
        teacher_negative: the teacher's negative prompt; None stands for zeroed conditioning.
        real_guidance_scale: of the DMD real score; None is the teacher's.
        real_guidance_interval: the timesteps between which it was guided; None is all.
        shift: shift of a flow schedule, None for VP.
        plain_host: settings for a host without our sampler; empty = worked out from the grid.
    """

    family: str
    prediction: str
    num_steps: int
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    version: int = VERSION
    solver: str = "ode"
    guidance_scale: float = 1.0
    teacher_guidance_scale: float = 1.0
    teacher_negative: str | None = ""
    guidance_rescale: float = 0.0
    real_guidance_scale: float | None = None
    real_guidance_interval: tuple[float, float] | None = None
    clip_skip: int | None = None
    resolutions: tuple[tuple[int, int], ...] = ()
    shift: float | None = None
    zero_terminal_snr: bool = False
    merged_loras: tuple[MergedLora, ...] = ()
    teacher_name: str = ""
    teacher_sha256: str = ""
    anchor: Anchor | None = None
    num_anchored_steps: int = 1
    objective: str = "dp_dmd"
    plain_host: str = ""
    generator: str = ""

    def __post_init__(self) -> None:
        self._check_contract()
        self._check_origin()
        if not self.plain_host:
            self._set("plain_host", plain_host_settings(self))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for everybody else

    def _check_contract(self) -> None:
        check_version(self.version)
        checks.one_of(self.family, "family", tuple(FAMILY_LABELS))
        checks.one_of(self.prediction, "prediction", checks.PREDICTIONS)
        checks.one_of(self.solver, "solver", checks.SOLVERS)
        checks.whole(self.num_steps, "num_steps", 1, MAX_STEPS)
        top = 1 if self.prediction == "flow" else 1e5
        self._set("sigmas", checks.numbers(self.sigmas, "sigmas", self.num_steps + 1, top))
        self._set("timesteps", checks.numbers(self.timesteps, "timesteps", self.num_steps, 1000))
        checks.require(self.sigmas[-1] == 0, "sigmas must end in 0", self.sigmas[-1])
        pairs = zip(self.sigmas, self.sigmas[1:], strict=False)
        checks.require(
            all(a > b for a, b in pairs), "sigmas must decrease at every step", self.sigmas
        )
        checks.number(self.guidance_scale, "guidance_scale", 0, 100)
        self._set("resolutions", checks.resolution_list(self.resolutions))
        checks.optional(checks.number, self.shift, "shift", 0.01, 100)
        checks.boolean(self.zero_terminal_snr, "zero_terminal_snr")
        checks.optional(checks.whole, self.clip_skip, "clip_skip", 1, 32)

    def _check_origin(self) -> None:
        checks.number(self.teacher_guidance_scale, "teacher_guidance_scale", 0, 1000)
        checks.optional(
            checks.text, self.teacher_negative, "teacher_negative", checks.MAX_PROMPT, lines=True
        )
        checks.number(self.guidance_rescale, "guidance_rescale", 0, 1)
        checks.optional(checks.number, self.real_guidance_scale, "real_guidance_scale", 0, 1000)
        if self.real_guidance_interval is not None:
            interval = self.real_guidance_interval
            found = checks.numbers(interval, "real_guidance_interval", 2, 1000)
            self._set("real_guidance_interval", found)
        self._set("merged_loras", checks.records(self.merged_loras, "merged_loras", MergedLora))
        checks.text(self.teacher_name, "teacher_name", checks.MAX_NAME)
        checks.hex_text(self.teacher_sha256, "teacher_sha256", 64)
        if isinstance(self.anchor, Mapping):
            self._set("anchor", checks.records([self.anchor], "anchor", Anchor)[0])
        is_anchor = self.anchor is None or isinstance(self.anchor, Anchor)
        checks.require(is_anchor, "anchor must be an object", self.anchor)
        checks.whole(self.num_anchored_steps, "num_anchored_steps", 0, self.num_steps)
        checks.token(self.objective, "objective")
        checks.text(self.plain_host, "plain_host", 1000)
        checks.text(self.generator, "generator", 200)

    @property
    def teacher_autov2(self) -> str:
        """The teacher's AutoV2 hash, the one sites show: the first ten digits of its SHA256."""
        return self.teacher_sha256[:10]

    def to_json(self) -> str:
        """The recipe as compact ASCII JSON; floats keep every bit (shortest exact decimal)."""
        fields = dataclasses.asdict(self)
        for name in LATER:
            if fields[name] is None:
                fields.pop(name)
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @staticmethod
    def from_json(source: str | bytes) -> Recipe:
        """The recipe in `source`; unknown extra fields are ignored, anything wrong raises."""
        fields = _parse(source)
        check_version(fields.get("version"))
        known = {field.name for field in dataclasses.fields(Recipe)}
        unknown = [name for name in fields if name not in known]
        checks.require(
            len(unknown) <= checks.MAX_UNKNOWN_FIELDS, "too many unknown fields", len(unknown)
        )
        checks.require_fields(Recipe, fields, "recipe")
        return Recipe(**{name: value for name, value in fields.items() if name in known})


def read_recipe(metadata: Mapping[str, str]) -> Recipe | None:
    """The recipe in a safetensors file's metadata, None when there is none."""
    source = metadata.get(METADATA_KEY)
    return None if source is None else Recipe.from_json(source)


def check_version(version: object) -> None:
    """Raise unless `version` is the one this program reads."""
    if isinstance(version, int) and not isinstance(version, bool) and version == VERSION:
        return
    shown = repr(version)[:40]
    raise RecipeError(
        f"The sampling recipe has version {shown}, and this program reads version {VERSION}. "
        "Update DP-DMD Studio, or sample with the settings in the LoRA's usage hint."
    )


def _parse(source: str | bytes) -> dict:
    if not isinstance(source, str | bytes) or len(source) > checks.MAX_RECIPE_CHARACTERS:
        limit = f"{checks.MAX_RECIPE_CHARACTERS} characters"
        raise RecipeError(f"The sampling recipe is not text of up to {limit}, so it is not read.")
    try:
        fields = json.loads(source, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"The sampling recipe is not valid JSON ({str(error)[:120]}).") from error
    checks.require(isinstance(fields, dict), "expected a JSON object", type(fields).__name__)
    return fields


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number a recipe may hold")


def plain_timesteps(num_steps: int) -> list[int]:
    """Positions 1..1000 that the hosts' "Simple" schedule picks from their table of 1000 levels."""
    return [1000 - int(i * 1000 / num_steps) for i in range(num_steps)]


def is_plain_grid(recipe: Recipe) -> bool:
    """Whether a host without our sampler samples at the same levels with its "Simple" schedule."""
    positions = plain_timesteps(recipe.num_steps)
    if recipe.prediction != "flow":
        expected = [position - 1.0 for position in positions]
        return all(abs(a - b) < 0.5 for a, b in zip(recipe.timesteps, expected, strict=True))
    shift = recipe.shift or 1.0
    levels = [shift * p / 1000 / (1 + (shift - 1) * p / 1000) for p in positions]
    return all(abs(a - b) < 2e-3 for a, b in zip(recipe.sigmas[:-1], levels, strict=True))


def plain_host_settings(recipe: Recipe) -> str:
    """The settings that reproduce the recipe in a host without our plugin, or the need for it."""
    if recipe.solver != "ode" or not is_plain_grid(recipe):
        return "none: this grid needs the DP-DMD sampler"
    settings = f"Euler, Simple, {recipe.num_steps} steps, CFG {recipe.guidance_scale:g}"
    shift = shift_to_set(recipe)
    if shift is not None:
        settings += f", shift {shift:g}"
    if is_unusual_flow(recipe):
        settings += " as a rectified flow (ComfyUI: ModelSamplingSD3 before the sampler)"
    return settings


def shift_to_set(recipe: Recipe) -> float | None:
    """The shift that a host has to be told; None where it has none, or takes the same anyway."""
    usual = family(recipe.family).sampling.flow_shift
    if recipe.prediction != "flow" or (
        recipe.shift in (None, usual) and not is_unusual_flow(recipe)
    ):
        return None
    return recipe.shift or 1.0


def is_unusual_flow(recipe: Recipe) -> bool:
    """Whether it is a flow of a family whose models hosts do not sample as flows unasked."""
    return recipe.prediction == "flow" and family(recipe.family).sampling.schedule != "flow"


def used_clip_skip(recipe: Recipe) -> int | None:
    """The clip skip the student was trained with; None where its family has none."""
    return recipe.clip_skip if family(recipe.family).text.clip_skip else None


def usage_hint(recipe: Recipe) -> str:
    """One paragraph for people: settings, strength, teacher, sizes."""
    parts = [f"{recipe.plain_host}; LoRA strength 1.0."]
    if recipe.guidance_scale == 1.0:
        parts.append("A negative prompt has no effect at CFG 1.")
    skip = used_clip_skip(recipe)
    if skip is not None and skip > 1:
        parts.append(f"Clip skip {skip}.")
    if recipe.resolutions:
        sizes = ", ".join(f"{width}x{height}" for width, height in recipe.resolutions)
        parts.append(f"Trained at {sizes}.")
    if recipe.teacher_name:
        checksum = f" ({recipe.teacher_autov2})" if recipe.teacher_autov2 else ""
        parts.append(f"Made for {recipe.teacher_name}{checksum}.")
    for lora in recipe.merged_loras:
        checksum = f" ({lora.sha256[:10]})" if lora.sha256 else ""
        if lora.included:
            parts.append(f"Contains {lora.name} at {lora.strength:g}; do not add it again.")
        else:
            parts.append(f"Use it together with {lora.name} at {lora.strength:g}{checksum}.")
    return " ".join(parts)

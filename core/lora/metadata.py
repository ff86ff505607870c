"""What a LoRA file says of itself: kohya's `ss_*`, ModelSpec 1.0.1, the recipe. No torch.

Hosts decide by it under which model a LoRA is listed, people read in it which settings to choose,
and sites recognise the file by its hashes. All values are text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from ..families import family
from ..recipe.recipe import METADATA_KEY, Recipe, usage_hint, used_clip_skip

SETTINGS_KEY = "dpdmd.settings"
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
PREDICTION_TYPES = {"eps": "epsilon", "v": "v", "x0": "x0", "flow": "flow"}


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What the trainer knows beyond the recipe; empty or zero values are left out of the file.

    Args:
        settings: all settings of the run by name, kept as JSON under `dpdmd.settings`.
        started_at: Unix time, as finished_at.
    """

    title: str = ""
    description: str = ""
    author: str = ""
    license: str = ""
    num_updates: int = 0
    seed: int | None = None
    learning_rate: float = 0.0
    optimizer: str = ""
    lr_scheduler: str = ""
    precision: str = ""
    batch_size: int = 0
    started_at: float = 0.0
    finished_at: float = 0.0
    session_id: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)


def training_metadata(facts: TrainingFacts) -> dict[str, str]:
    """Metadata of a run for `write_lora`; only what is known."""
    settings = json.dumps(dict(facts.settings), separators=(",", ":"), default=str)
    found: dict[str, object] = {
        "modelspec.title": facts.title,
        "modelspec.description": facts.description,
        "modelspec.author": facts.author,
        "modelspec.license": facts.license,
        "ss_steps": facts.num_updates,
        "ss_max_train_steps": facts.num_updates,
        "ss_learning_rate": facts.learning_rate,
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.lr_scheduler,
        "ss_mixed_precision": facts.precision,
        "ss_total_batch_size": facts.batch_size,
        "ss_training_started_at": facts.started_at,
        "ss_training_finished_at": facts.finished_at,
        "ss_session_id": facts.session_id,
        "ss_seed": "" if facts.seed is None else str(facts.seed),
        SETTINGS_KEY: settings if facts.settings else "",
        "modelspec.date": iso_date(facts.finished_at) if facts.finished_at else "",
    }
    return {key: str(value) for key, value in found.items() if value}


def iso_date(seconds: float) -> str:
    """A Unix time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(int(seconds), timezone.utc).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class NetworkFacts:
    """What the tensors say: rank and alpha of the largest pair, `modelspec.architecture`."""

    name: str
    rank: int
    alpha: float
    architecture: str
    has_convolutions: bool = False


def lora_metadata(
    recipe: Recipe, network: NetworkFacts, given: Mapping[str, str]
) -> dict[str, str]:
    """All metadata of the file but its hashes; what is `given` comes before what is derived.

    Args:
        given: `training_metadata`, and anything else the caller wants to say.
    """
    metadata = _kohya(recipe, network) | _modelspec(recipe, network)
    metadata |= {key: str(value) for key, value in given.items()}
    metadata[METADATA_KEY] = recipe.to_json()
    return {key: _clean(value) for key, value in metadata.items()}


def _kohya(recipe: Recipe, network: NetworkFacts) -> dict[str, str]:
    sizes = {"conv_dim": str(network.rank), "conv_alpha": f"{network.alpha:g}"}
    skip = used_clip_skip(recipe)
    found = {
        "ss_output_name": network.name,
        "ss_base_model_version": family(recipe.family).lora.base_model_version,
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(network.rank),
        "ss_network_alpha": f"{network.alpha:g}",
        "ss_training_comment": training_comment(recipe),
        "ss_epoch": "1",
        "ss_network_args": json.dumps(sizes) if network.has_convolutions else "",
        "ss_sd_model_name": recipe.teacher_name,
        "ss_new_sd_model_hash": recipe.teacher_sha256,
        "ss_clip_skip": "" if skip is None else str(skip),
        "ss_resolution": str(recipe.resolutions[0]) if recipe.resolutions else "",
    }
    return {key: value for key, value in found.items() if value}


def _modelspec(recipe: Recipe, network: NetworkFacts) -> dict[str, str]:
    found = {
        "sai_model_spec": "1.0.1",
        "architecture": network.architecture,
        "implementation": IMPLEMENTATION,
        "title": network.name,
        "description": training_comment(recipe),
        "usage_hint": usage_hint(recipe),
        "prediction_type": PREDICTION_TYPES[recipe.prediction],
        "tags": "few-step, distillation, DP-DMD",
        "implementation_version": recipe.generator,
        "resolution": "x".join(map(str, recipe.resolutions[0])) if recipe.resolutions else "",
        "merged_from": recipe.teacher_name,
    }
    return {f"modelspec.{key}": value for key, value in found.items() if value}


def training_comment(recipe: Recipe) -> str:
    """The recipe's facts for people, as one paragraph."""
    objective = recipe.objective.replace("_", "-").upper()
    parts = [f"Few-step LoRA distilled by {objective}: {usage_hint(recipe)}"]
    levels = ", ".join(f"{sigma:.6g}" for sigma in recipe.sigmas)
    parts.append(f"Sigmas {levels}; timesteps {', '.join(f'{t:g}' for t in recipe.timesteps)}.")
    negative = {None: "zeroed", "": "empty"}.get(recipe.teacher_negative, "given")
    parts.append(
        f"Teacher: guidance {recipe.teacher_guidance_scale:g}, negative prompt {negative}"
        + (f", guidance rescale {recipe.guidance_rescale:g}" if recipe.guidance_rescale else "")
        + _real_guidance(recipe)
        + "."
    )
    if recipe.anchor is not None:
        anchor = dataclasses.asdict(recipe.anchor)
        parts.append("Anchor at sigma {sigma:.6g} (step {steps} of {grid}).".format(**anchor))
    return " ".join(parts)


def _real_guidance(recipe: Recipe) -> str:
    """What the guidance of the DMD real score was, where it was another than the teacher's."""
    scale, interval = recipe.real_guidance_scale, recipe.real_guidance_interval
    if scale is None and interval is None:
        return ""
    words = [] if scale is None else [f"{scale:g}"]
    if interval is not None:
        words.append("at timesteps {:g} to {:g} alone".format(*interval))
    return f"; real score: guidance {' '.join(words)}"


def _clean(value: str) -> str:
    """The text without lone surrogates, which a UTF-8 header cannot hold."""
    return value.encode("utf-8", "replace").decode("utf-8")

"""What the set-up script tells the sampler of one generation, on the host's processing object."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...core.recipe.recipe import Recipe
from ...core.recipe.resolve import AS_TRAINED, Asked, LoraFacts, Resolved, resolve
from ..host import models, scripts
from .recipes import WORDS, in_force

RECIPE, KIND = "dpdmd_recipe", "dpdmd_kind"
ANCHOR, ATTENTION = "dpdmd_anchor", "dpdmd_attention"


@dataclass(frozen=True)
class Anchor:
    """The base model's part: which LoRAs are off, how many steps (0 as in training), guidance."""

    loras: tuple[str, ...]
    steps: int = 0
    guidance: float = 1.0

    def describe(self) -> str:
        """The infotext's words."""
        steps = {0: "trained steps", 1: "1 step"}.get(self.steps, f"{self.steps} steps")
        return f"{steps} at CFG {self.guidance:g}"


def tell(
    p: scripts.Processing,
    recipe: Recipe | None,
    anchor: Anchor | None,
    attention: str = "",
    kind: str = "",
) -> None:
    """Note what this generation samples by: a recipe, and the kind of LoRA it is that of."""
    setattr(p, RECIPE, recipe)
    setattr(p, KIND, kind)
    setattr(p, ANCHOR, anchor)
    setattr(p, ATTENTION, attention)


def attention_of(p: scripts.Processing) -> str:
    """The attention chosen for this generation, "" for none."""
    return str(getattr(p, ATTENTION, ""))


def has_own_recipe(p: scripts.Processing) -> bool:
    """Whether the script has found what to sample by."""
    return getattr(p, RECIPE, None) is not None


def resolved(p: scripts.Processing, sigmas: Tensor, asked: Asked = AS_TRAINED) -> Resolved:
    """What the script has found, or what the active LoRAs or the family say.

    Args:
        sigmas: those of the denoiser in use, increasing.
    """
    told, kind = getattr(p, RECIPE, None), getattr(p, KIND, "")
    if kind:
        return resolve(models.model_facts(sigmas), (), replace(asked, kind=kind), WORDS)
    if told is not None:  # and looked at already
        return resolve(None, [LoraFacts(recipe=told)], asked, WORDS)
    return in_force(models.model_facts(sigmas), asked)


def is_anchored(p: scripts.Processing) -> bool:
    """Whether the base model samples first, so that the guidance set is its own."""
    return getattr(p, ANCHOR, None) is not None


def anchor_of(p: scripts.Processing) -> Anchor | None:
    """The base model's part; none in the second pass of hires fix, where the layout is settled."""
    return None if getattr(p, "is_hr_pass", False) else getattr(p, ANCHOR, None)

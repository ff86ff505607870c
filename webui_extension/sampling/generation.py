"""What the set-up script tells the sampler of one generation, on the host's processing object."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.recipe.recipe import Recipe
from .. import host
from .recipes import recipe_for

RECIPE, ANCHOR, ATTENTION = "dpdmd_recipe", "dpdmd_anchor", "dpdmd_attention"


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
    p: host.Processing, recipe: Recipe | None, anchor: Anchor | None, attention: str = ""
) -> None:
    """Note what this generation samples by."""
    setattr(p, RECIPE, recipe)
    setattr(p, ANCHOR, anchor)
    setattr(p, ATTENTION, attention)


def attention_of(p: host.Processing) -> str:
    """The attention chosen for this generation, "" for none."""
    return str(getattr(p, ATTENTION, ""))


def has_own_recipe(p: host.Processing) -> bool:
    """Whether the script has found what to sample by."""
    return getattr(p, RECIPE, None) is not None


def recipe_of_generation(p: host.Processing, sigmas: Tensor) -> Recipe:
    """What the script has found, or what the active LoRAs or the family say.

    Args:
        sigmas: levels of the denoiser in use, increasing.
    """
    told = getattr(p, RECIPE, None)
    return told if told is not None else recipe_for(host.model_facts(sigmas))


def is_anchored(p: host.Processing) -> bool:
    """Whether the base model walks first, so that the guidance set is its own."""
    return getattr(p, ANCHOR, None) is not None


def anchor_of(p: host.Processing) -> Anchor | None:
    """The base model's part; none in the second pass of hires fix, where the layout is settled."""
    return None if getattr(p, "is_hr_pass", False) else getattr(p, ANCHOR, None)

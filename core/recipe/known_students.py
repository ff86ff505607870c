"""Known third-party few-step LoRAs: at which noise levels, and how, each was made to be sampled.

Their files carry no recipe, so a person names the kind and gets the grid. Those of SD 1.x and SDXL
predict eps; all are sampled without guidance. The positions below are those of the
authors' own examples; `source` says which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ..diffusion.schedule import Levels
from ..errors import SettingsError
from ..families import FAMILY_LABELS
from .few_step import default_recipe, schedule_of
from .recipe import Recipe, plain_timesteps

LCM_TEACHER_STEPS = 50
ANY_FAMILY = tuple(FAMILY_LABELS)


def simple_grid(num_steps: int) -> list[int]:
    """Positions of the grid that hosts call "Simple", diffusers "trailing": 4 are 999 ... 249."""
    return [position - 1 for position in plain_timesteps(num_steps)]


def consistency_grid(num_steps: int) -> list[int]:
    """Positions out of the 50 a consistency model was trained at: 4 are 999, 759, 499, 259.

    The teacher's grid is 19, 39, ..., 999; step i of N takes its floor(50 i / N)th from the top
    (LCMScheduler and TCDScheduler of diffusers, `original_inference_steps` 50).
    """
    if not 1 <= num_steps <= LCM_TEACHER_STEPS:
        raise SettingsError(
            f"{num_steps} steps were asked for; a consistency LoRA has 1 to {LCM_TEACHER_STEPS}."
        )
    spacing = 1000 // LCM_TEACHER_STEPS
    teacher = [spacing * (i + 1) - 1 for i in reversed(range(LCM_TEACHER_STEPS))]
    return [teacher[i * LCM_TEACHER_STEPS // num_steps] for i in range(num_steps)]


@dataclass(frozen=True, kw_only=True)
class KnownStudent:
    """A kind of few-step LoRA.

    Attributes:
        name: what lists show.
        families: the families it exists for.
        num_steps: the number of steps it was trained for, or is most used with.
        solver: "ode", or "sde" where fresh noise is added after every step.
        prediction: what the models that it exists for predict; "" for anything.
        grid: number of steps -> positions 999 .. 0, decreasing.
        source: who says so.
        hint: what a user has to know besides.
    """

    name: str
    families: tuple[str, ...]
    num_steps: int
    solver: str
    prediction: str = "eps"
    grid: Callable[[int], list[int]] = simple_grid
    source: str = ""
    hint: str = ""

    def recipe(
        self,
        family: str,
        prediction: str,
        *,
        shift: float | None = None,
        zero_terminal_snr: bool = False,
        num_steps: int = 0,
    ) -> Recipe:
        """How to sample it on a model of this family and schedule; 0 steps are its own number.

        Raises:
            SettingsError: it does not exist for this kind of model, or for this number of steps.
        """
        self._check(family, prediction)
        count = num_steps or self.num_steps
        usual = default_recipe(
            family, prediction, shift=shift, zero_terminal_snr=zero_terminal_snr, num_steps=count
        )
        positions = torch.tensor([*self.grid(count), -1], dtype=torch.float64)
        levels = Levels.at_positions(schedule_of(usual), positions)
        return replace(
            usual,
            sigmas=tuple(levels.sigmas.tolist()),
            timesteps=tuple(levels.timesteps.tolist()[:-1]),
            solver=self.solver,
            plain_host="",
        )

    def _check(self, family: str, prediction: str) -> None:
        if family not in self.families:
            found = FAMILY_LABELS.get(family, "of another family")
            expected = " and ".join(FAMILY_LABELS[known] for known in self.families)
        elif self.prediction not in ("", prediction):
            found = f"of {prediction} prediction"
            expected = f"one of {self.prediction} prediction"
        else:
            return
        raise SettingsError(
            f"{self.name} was made for {expected}, and this model is {found}. Choose the settings "
            "of the LoRA that is loaded."
        )


def _lightning(num_steps: int) -> KnownStudent:
    # arXiv:2402.13929; model card ByteDance/SDXL-Lightning: Euler, timestep_spacing "trailing",
    # guidance_scale 0, "always use the correct checkpoint for the corresponding inference steps"
    return KnownStudent(
        name=f"SDXL-Lightning {num_steps} steps",
        families=("sdxl",),
        num_steps=num_steps,
        solver="ode",
        source="model card ByteDance/SDXL-Lightning",
    )


def _hyper(num_steps: int) -> KnownStudent:
    # arXiv:2404.13686; model card ByteDance/Hyper-SD: the 2, 4 and 8 step LoRAs are sampled with
    # DDIM (eta 0), timestep_spacing "trailing", guidance_scale 0: the plain ODE on the simple grid
    return KnownStudent(
        name=f"Hyper-SD {num_steps} steps",
        families=("sd1", "sdxl"),
        num_steps=num_steps,
        solver="ode",
        source="model card ByteDance/Hyper-SD",
        hint="Not for the CFG variants, which want a guidance of 5 to 8.",
    )


def _phased(num_steps: int) -> KnownStudent:
    # arXiv:2405.18407; model card wangfuyun/PCM_Weights: "Use DDIM or Euler instead of LCM",
    # trailing; the file's name says for how many steps
    return KnownStudent(
        name=f"PCM {num_steps} steps",
        families=("sd1", "sdxl"),
        num_steps=num_steps,
        solver="ode",
        source="model card wangfuyun/PCM_Weights",
        hint="For the small-CFG files; the normal-CFG ones want guidance.",
    )


KNOWN_STUDENTS: dict[str, KnownStudent] = {
    student.name: student
    for student in (
        KnownStudent(
            name="DMD2 4 steps",
            families=("sdxl",),
            num_steps=4,
            solver="sde",
            # README of tianweiy/DMD2: LCMScheduler with timesteps [999, 749, 499, 249], guidance 0
            source="README of tianweiy/DMD2",
            hint="Its authors suggest a LoRA strength of 1 on SDXL base, about .75 on fine-tunes.",
        ),
        *map(_lightning, (2, 4, 8)),
        # model card: TCDScheduler with eta 1, which is a full re-noise, on the 50-step grid. At one
        # step there is nothing to anchor, and the card itself allows more
        KnownStudent(
            name="Hyper-SD 1 step (run at 4)",
            families=("sd1", "sdxl"),
            num_steps=4,
            solver="sde",
            grid=consistency_grid,
            source="model card ByteDance/Hyper-SD",
        ),
        *map(_hyper, (2, 4, 8)),
        KnownStudent(
            name="LCM",
            families=("sd1", "sdxl"),
            num_steps=4,
            solver="sde",
            grid=consistency_grid,
            # arXiv:2310.04378, Algorithm 3; LCMScheduler of diffusers
            source="model cards latent-consistency/lcm-lora-*",
            hint="4 to 8 steps.",
        ),
        # arXiv:2402.19159, Algorithm 4: gamma (eta) 0 is the ODE, 1 the full re-noise. The authors'
        # .3 lies between and is not offered
        KnownStudent(
            name="TCD (eta 0)",
            families=("sd1", "sdxl"),
            num_steps=4,
            solver="ode",
            grid=consistency_grid,
            source="TCDScheduler of diffusers",
            hint="The authors' eta of .3 is not offered.",
        ),
        *map(_phased, (2, 4, 8)),
        KnownStudent(
            name="SDXL Turbo (extracted LoRA)",
            families=("sdxl",),
            num_steps=4,
            solver="sde",
            # arXiv:2311.17042, section 3: student levels 1000, 750, 500, 250; its own samples are
            # noised to the next one
            source="arXiv:2311.17042",
        ),
        # model card circlestone-labs/Anima-Official-LoRAs: 8 steps, guidance 1
        KnownStudent(
            name="Anima Turbo 8 steps",
            families=("anima",),
            num_steps=8,
            solver="ode",
            prediction="flow",
            source="model card circlestone-labs/Anima-Official-LoRAs",
        ),
        KnownStudent(
            name="Z-Image Turbo 8 steps (checkpoint)",
            families=("zimage",),
            num_steps=8,
            solver="ode",
            prediction="flow",
            source="model card Tongyi-MAI/Z-Image-Turbo",
        ),
        *(
            KnownStudent(
                name=f"simple grid, {solver}",
                families=ANY_FAMILY,
                num_steps=4,
                solver=solver,
                prediction="",
                source="any",
            )
            for solver in ("ode", "sde")
        ),
    )
}

# What an author or a trainer wrote into the file about what it is. A file name is no such fact, nor
# is the model a LoRA was trained on: a style LoRA made on Lightning is no Lightning LoRA.
TRUSTED_FIELDS = ("modelspec.title", "ss_output_name")
_KINDS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    (r"dmd2", "DMD2 {} steps", (4,)),
    (r"(sdxl)?lightning", "SDXL-Lightning {} steps", (2, 4, 8)),
    (r"hyper(sd|sdxl|sd15)", "Hyper-SD {} steps", (2, 4, 8)),
    (r"pcm", "PCM {} steps", (2, 4, 8)),
)
_LOOSE_KINDS: tuple[tuple[str, str, tuple[int, ...]], ...] = (  # by a word of a name
    (r"(sdxl)?lcm(lora)?", "LCM", ()),
    (r"(sdxl)?tcd(lora)?", "TCD (eta 0)", ()),
    (r".*xlturbo.*", "SDXL Turbo (extracted LoRA)", ()),
    (r".*hyper(sd|sdxl|sd15).*", "Hyper-SD 1 step (run at 4)", (1,)),
)
_FILLER = r"(sdxl|sdxlbase|sd15|sd|xl|base|10|official|lora|loras|fp16|bf16|fp32|rank\d+|r\d+)"
_COUNT = r"(?P<count>\d+)steps?"


def recognise(metadata: Mapping[str, str], filename: str = "") -> str | None:
    """The known kind that the file's own metadata names beyond doubt, None otherwise.

    A title that holds nothing but the kind, a number of steps and words like "lora" or "fp16" is
    taken; "my style for lightning 4 steps" is not. The name of the file never decides: a file whose
    name says another number of steps than its title is not recognised, that is all.
    """
    titles = [metadata[field] for field in TRUSTED_FIELDS if metadata.get(field)]
    named = {kind for kind in map(_named_kind, titles) if kind}
    if len(named) != 1:
        return None
    (kind,) = named
    said = re.search(_COUNT, _plain(filename))
    differs = said is not None and kind != "LCM" and f" {said['count']} " not in kind
    return None if differs else kind


def suggested(filename: str) -> str:
    """The known kind that the name of a file speaks of, "" for none: to be offered, never taken."""
    text = filename[:400].lower()
    plain, words = _plain(text), set(re.split(r"[^a-z0-9]+", text))
    said = re.search(r"(\d+)[^a-z0-9]*steps?", text)
    count = int(said[1]) if said else 0
    for pattern, name, counts in _KINDS:
        if re.search(pattern, plain) and (count in counts or len(counts) == 1):
            return name.format(count if count in counts else counts[0])
    for pattern, name, counts in _LOOSE_KINDS:
        named = any(re.fullmatch(pattern, word) for word in (*words, plain))
        if named and (not counts or count in counts):
            return name
    return ""


def _named_kind(title: str) -> str | None:
    text = _plain(title)
    if len(text) > 100:
        return None
    if re.fullmatch(rf"{_FILLER}*lcm{_FILLER}*", text):
        return "LCM"
    for pattern, name, counts in _KINDS:
        found = re.fullmatch(rf"{_FILLER}*{pattern}{_FILLER}*{_COUNT}{_FILLER}*", text)
        if found and int(found["count"]) in counts:
            return name.format(found["count"])
    return None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text[:400].lower())

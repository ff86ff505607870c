"""What a few-step LoRA is sampled by: one answer for all hosts.

A host says what it sees (the model, the LoRAs on it) and what the user asks for. It gets the noise
levels, guidance and solver, and all that the user should know. Hosts only convert; what is decided,
and the words in which it is said, are here, but for what to click: each host gives that as `Words`.

The kind of LoRA that the user names decides; without one, what the first few-step LoRA's own
file says; and failing that, the usual grid of the model's family. Where a file has no recipe but
its metadata name a known third-party kind, the user is told which, and chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import LoraError, SettingsError
from ..families import FAMILY_LABELS
from .few_step import Plan, default_recipe, plan
from .known_students import KNOWN_STUDENTS, TRUSTED_FIELDS, recognise, suggested
from .recipe import METADATA_KEY, Recipe, is_unusual_flow

FILE, KIND, USUAL = "file", "kind", "usual"
"""Where a recipe comes from: the LoRA's file, the kind the user named, the family's usual grid."""


@dataclass(frozen=True)
class ModelFacts:
    """What a host's model is.

    Attributes:
        family: "" for one that is none of ours.
        prediction: "" for one that samples in a way that is not known here.
        shift: of a flow; None is the family's.
        zero_terminal_snr: None where the host does not know it yet.
        flow_at_will: whether our sampler there samples it as a flow if a recipe says so, whatever
            the host takes it for.
        name: what the host calls this kind of model, "" where it has no word.
    """

    family: str
    prediction: str
    shift: float | None = None
    zero_terminal_snr: bool | None = False
    name: str = ""
    flow_at_will: bool = False


@dataclass(frozen=True)
class LoraFacts:
    """What is known of a LoRA on the model.

    Attributes:
        name: what the host calls it, "" where it does not know.
        recipe: of its file, or its text there, which is read only if it decides; None for none.
        strength: at which it is on; None where the host does not know.
        kind: the known third-party few-step LoRA that its metadata name, "" for none.
        likely: the one that only its file's name speaks of, "" for none; it decides nothing.
    """

    name: str = ""
    recipe: Recipe | str | None = None
    strength: float | None = None
    kind: str = ""
    likely: str = ""

    @staticmethod
    def of(metadata: Mapping[str, object], filename: str = "") -> LoraFacts:
        """What a file's metadata say; its recipe is not read yet."""
        texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
        recipe, kind = texts.get(METADATA_KEY), recognise(texts, filename) or ""
        says = recipe is not None or any(texts.get(field) for field in TRUSTED_FIELDS)
        return LoraFacts(recipe=recipe, kind=kind, likely="" if says else suggested(filename))

    def read(self) -> LoraFacts:
        """The same with its recipe read.

        Raises:
            RecipeError: the recipe is broken or of a newer version.
        """
        text = self.recipe
        return replace(self, recipe=Recipe.from_json(text)) if isinstance(text, str) else self


@dataclass(frozen=True)
class Asked:
    """What the user asks for.

    Attributes:
        kind: a name of `KNOWN_STUDENTS`, or "" for what the LoRA's file says.
        steps: 0 takes the recipe's.
        denoise: share of the trajectory to redo, in (0, 1].
        exact: start at that very level instead of the trained one nearest to it.
    """

    kind: str = ""
    steps: int = 0
    denoise: float = 1.0
    exact: bool = False


AS_TRAINED = Asked()
LITTLE_LESS = 0.7
"""From this strength to 1 a few-step LoRA mostly draws as well as at 1."""
"""What the LoRA says, from start to end."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a host calls things, and what its users can do.

    Attributes:
        model: its word for a model.
        kinds: where the user chooses the kind of a LoRA.
        other_family: advice for a model of another family.
        other_sampling: advice for a model that samples in an unknown way.
        predictions: prediction -> advice for a model that seems to predict something else, with
            {shift} for a flow's.
        zero_terminal_snr: advice for a model with another end than the LoRA's, with {wanted}
            for "on" or "off".
        no_recipe: note for the usual grid, with {steps}, {family} and {advice}; "" for none.
    """

    model: str
    kinds: str
    other_family: str
    other_sampling: str
    predictions: Mapping[str, str] = field(default_factory=dict)
    zero_terminal_snr: str = ""
    no_recipe: str = ""


@dataclass(frozen=True)
class Resolved:
    """What to sample by.

    Attributes:
        recipe: the one to sample by.
        origin: where it comes from, `FILE`, `KIND` or `USUAL`.
        plan: levels, guidance and solver for what is asked, with everything to tell the user.
    """

    recipe: Recipe
    origin: str
    plan: Plan

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a sentence or two each."""
        return self.plan.notes

    def with_notes(self, notes: Sequence[str]) -> Resolved:
        """The same with what a host has to say before it."""
        return replace(self, plan=replace(self.plan, notes=(*notes, *self.notes)))


def resolve(
    facts: ModelFacts | None, loras: Sequence[LoraFacts], asked: Asked, words: Words
) -> Resolved:
    """What to sample a model with these LoRAs by.

    Args:
        facts: None before a model is loaded: a file's recipe is then taken as it is.
        loras: in the host's order; the first with a recipe decides.

    Raises:
        LoraError: the recipe is for another family or prediction.
        RecipeError: the recipe is broken or of a newer version.
        SettingsError: there is no model or none of ours, the kind does not exist for it, or the
            steps or the denoise cannot be.
    """
    few_step = [lora for lora in loras if lora.recipe is not None or lora.kind]
    with_recipe = [lora for lora in few_step if lora.recipe is not None]
    steps = asked.steps
    if asked.kind:
        # that kind's own grid for that number of steps, in place of another spaced alike
        recipe, notes, origin, steps = *_of_kind(facts, asked, words), KIND, 0
    elif with_recipe:
        recipe, notes, origin = *_of_file(facts, with_recipe, words), FILE
        notes = [*([_twice_note(few_step, words)] if len(few_step) > 1 else []), *notes]
    else:
        recipe, notes, origin = *_usual(facts, few_step, words), USUAL
    found = plan(recipe, steps=steps, denoise=asked.denoise, exact=asked.exact)
    return Resolved(recipe, origin, replace(found, notes=(*notes, *found.notes)))


def _of_kind(facts: ModelFacts | None, asked: Asked, words: Words) -> tuple[Recipe, list[str]]:
    facts = _loaded(facts, words)
    student = KNOWN_STUDENTS[asked.kind]
    recipe = student.recipe(
        facts.family,
        facts.prediction,
        shift=facts.shift,
        zero_terminal_snr=bool(facts.zero_terminal_snr),
        num_steps=asked.steps,
    )
    return recipe, [student.hint] if student.hint else []


def _of_file(
    facts: ModelFacts | None, loras: Sequence[LoraFacts], words: Words
) -> tuple[Recipe, list[str]]:
    recipe = loras[0].read().recipe
    assert isinstance(recipe, Recipe)
    if facts is not None:
        check_model(recipe, facts, words, loras[0].name)
    strengths = [(lora, lora.strength) for lora in loras if lora.strength is not None]
    notes = [_strength_note(lora, strength) for lora, strength in strengths if strength != 1.0]
    if facts is not None and follows_flow(recipe, facts):
        notes.append(flow_note(recipe, words.model))
    if facts is not None and recipe.prediction != "flow":
        known = facts.zero_terminal_snr
        if known is not None and known != recipe.zero_terminal_snr:
            notes.append(_zero_snr_note(recipe, words))
    return recipe, notes


def _usual(
    facts: ModelFacts | None, loras: Sequence[LoraFacts], words: Words
) -> tuple[Recipe, list[str]]:
    facts = _loaded(facts, words)
    label = FAMILY_LABELS.get(facts.family)
    if label is None:
        kind = f"a {facts.name}" if facts.name else "of a kind"
        raise SettingsError(
            f"This {words.model} is {kind} that DP-DMD sampling does not know; expected "
            f"{', '.join(FAMILY_LABELS.values())}. {words.other_family}"
        )
    if not facts.prediction:
        raise SettingsError(
            f"This {label} {words.model} is set to sample in a way that DP-DMD sampling does not "
            f"know (such as EDM or LCM). {words.other_sampling}"
        )
    recipe = default_recipe(
        facts.family,
        facts.prediction,
        shift=facts.shift,
        zero_terminal_snr=bool(facts.zero_terminal_snr),
    )
    kind = next((lora.kind for lora in loras), "")
    note = words.no_recipe.format(
        steps=recipe.num_steps, family=label, advice=_kind_advice(kind, words)
    )
    return recipe, [note] if note else []


def _loaded(facts: ModelFacts | None, words: Words) -> ModelFacts:
    if facts is None:
        raise SettingsError(f"No {words.model} is loaded. Choose one first.")
    return facts


def check_family(made_for: str, family: str, what: str = "The LoRA") -> None:
    """Raise LoraError if a LoRA for one family meets a model of another, or ("") of none of ours.

    Args:
        what: names the LoRA in the message.
    """
    if made_for != family:
        label = FAMILY_LABELS.get(family, "of another family")
        raise LoraError(
            f"{what} was made for {FAMILY_LABELS[made_for]}, but the model is {label}. A LoRA "
            "fits models of its own family only: choose another LoRA or another checkpoint."
        )


def check_model(recipe: Recipe, facts: ModelFacts, words: Words, name: str = "") -> None:
    """Raise LoraError, with the host's remedy, if a recipe is for another kind of model.

    Args:
        name: of the LoRA, for the message.
    """
    what = name or "The LoRA"
    check_family(recipe.family, facts.family, what)
    if recipe.prediction != facts.prediction and not follows_flow(recipe, facts):
        predicts = f"predicts {facts.prediction}" if facts.prediction else ""
        found = predicts or "is set to sample in another way"
        teacher = f" ({recipe.teacher_name})" if recipe.teacher_name else ""
        hint = words.predictions.get(recipe.prediction, "").format(shift=f"{recipe.shift or 1:g}")
        raise LoraError(
            f"{what} was made for a model of {recipe.prediction}-prediction, but this model "
            f"{found}. Use the checkpoint it was made for{teacher}.{' ' + hint if hint else ''}"
        )


def follows_flow(recipe: Recipe, facts: ModelFacts) -> bool:
    """Whether the recipe's flow is followed on a model that the host does not take for one."""
    flow = recipe.prediction == "flow" != facts.prediction
    return flow and facts.flow_at_will and is_unusual_flow(recipe)


def flow_note(recipe: Recipe, model: str) -> str:
    """The note that a model is sampled as a flow because its LoRA says so."""
    return (
        f"This {model} is sampled as a rectified flow of shift {recipe.shift or 1:g}, as the LoRA "
        "was trained; its file alone does not say that it is one."
    )


def _twice_note(loras: Sequence[LoraFacts], words: Words) -> str:
    """The note that several few-step LoRAs are on one model."""
    if all(lora.name for lora in loras):
        there = " and ".join(lora.name for lora in loras)
        return f"{there} are both few-step LoRAs and do the same work twice: take one off."
    return (
        f"There are two few-step LoRAs on this {words.model}, which do the same work twice: take "
        "one off."
    )


def kind_note(lora: LoraFacts, words: Words) -> str:
    """The note on a LoRA without a recipe that is, or may be, a known third-party one."""
    if lora.likely and not lora.kind:
        advice = f"Its name says {lora.likely}: if it is that, choose it under {words.kinds}."
    else:
        advice = _kind_advice(lora.kind, words)
    return f"{lora.name or 'The LoRA'} has no recipe. {advice}"


def _kind_advice(kind: str, words: Words) -> str:
    advice = f"Its metadata says {kind}: choose that" if kind else "Choose its kind"
    return f"{advice} under {words.kinds}."


def _strength_note(lora: LoraFacts, strength: float) -> str:
    """What to expect of another strength than trained for (docs/fidelity.md counts it)."""
    if strength > 1:
        advice = "Above it seeds look more alike."
    elif strength >= LITTLE_LESS:
        advice = "A little less mostly draws as well, with more variety."
    else:
        advice = "So much less is too little for its few steps."
    return (
        f"{lora.name or 'The LoRA'} is at strength {strength:g}; it was trained for 1.0, "
        f"where its steps and noise levels are right. {advice}"
    )


def _zero_snr_note(recipe: Recipe, words: Words) -> str:
    trained, wanted = ("with", "on") if recipe.zero_terminal_snr else ("without", "off")
    advice = words.zero_terminal_snr.format(wanted=wanted)
    return (
        f"The LoRA was trained {trained} zero terminal SNR, and this {words.model} is set "
        f"otherwise{': ' + advice if advice else ''}."
    )

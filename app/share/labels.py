"""What sites call the base models, and whose licence a student inherits."""

from __future__ import annotations

from ...core.errors import SettingsError
from ...core.families import BaseModel
from ...core.families import family as facts_of

OTHER = "Other"
_EMBEDDED = BaseModel("", "Apache-2.0", "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")


def base_model_choices(family: str, title: str, *, embedded: bool = False) -> list[str]:
    """Labels that Civitai's upload form offers for such a checkpoint, the suggested one first.

    Pony, Illustrious and NoobAI have SDXL's own tensors, so a person has to say which it is.

    Args:
        family: its name.
        title: `Detection.title` of the checkpoint; of SDXL with v-prediction most are NoobAI's.
        embedded: whether it is a teacher that ships with this program.
    """
    choices = [OTHER] if embedded else list(facts_of(family).sharing.labels)
    if "NoobAI" in choices and "v-prediction" in title:
        choices.remove("NoobAI")
        choices.insert(1, "NoobAI")
    return choices


def chosen_label(asked: str, family: str, title: str, *, embedded: bool = False) -> str:
    """The label that was asked for in the site's spelling, or the suggested one.

    Raises:
        SettingsError: the site's form does not offer it for this family.
    """
    choices = base_model_choices(family, title, embedded=embedded)
    if not asked:
        return choices[0]
    for label in choices:
        if label.casefold() == asked.strip().casefold():
            return label
    raise SettingsError(
        f"Base model label {asked!r} is not among those that fit this checkpoint ({title}): "
        f"{', '.join(choices)}."
    )


def base_model_note(family: str, title: str, *, embedded: bool = False) -> str:
    """What a person should know before choosing the label."""
    if embedded:
        return "The checkpoint is a small teacher of DP-DMD Studio, no model that Civitai lists."
    return facts_of(family).sharing.label_note(title)


def base_model(family: str, title: str, *, embedded: bool = False) -> BaseModel:
    """The base model of a family, whose licence its fine-tunes and students usually inherit."""
    if embedded:
        return _EMBEDDED
    return facts_of(family).sharing.base_model(title)


def license_note(family: str, title: str, *, embedded: bool = False) -> str:
    """One paragraph on the licence; no legal advice."""
    base = base_model(family, title, embedded=embedded)
    if embedded:
        return "The teacher ships with DP-DMD Studio under Apache-2.0."
    sharing = facts_of(family).sharing
    article = "an" if title.startswith("A") else "a"
    terms = f"{sharing.license_terms} " if sharing.license_terms else ""
    return (
        f"This LoRA was distilled from {article} {title} checkpoint. The base model "
        f"{sharing.base_title(title)} is under the {base.license}, whose terms usually hold for "
        f"what is derived from it. {terms}If the checkpoint is a fine-tune or a merge, its own "
        "licence counts too: look at its original page."
    )

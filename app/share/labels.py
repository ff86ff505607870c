"""What sites call the base models, and whose licence a student inherits."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import SettingsError

OTHER = "Other"
# Civitai's selectable labels (civitai/civitai, basemodel.constants.ts); SD 3 and SD 3.5 are hidden.
CHOICES = {
    "sd1": ("SD 1.5", "SD 1.4", "SD 1.5 LCM", "SD 1.5 Hyper", OTHER),
    "sdxl": ("SDXL 1.0", "Pony", "Illustrious", "NoobAI", "SDXL Lightning", "SDXL Hyper", OTHER),
    "sd3": (OTHER,),
}


@dataclass(frozen=True)
class BaseModel:
    """A base model: where it lives, and its licence as sites and people name it.

    Args:
        repository: on Hugging Face; empty where there is none.
        license_name: as a Hugging Face model card writes it.
    """

    repository: str
    license: str
    license_name: str
    license_link: str


_BASES = {
    "sd1": BaseModel(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "CreativeML OpenRAIL-M",
        "creativeml-openrail-m",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    ),
    "sdxl": BaseModel(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "CreativeML Open RAIL++-M",
        "creativeml-openrail-plus-plus-m",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    ),
    "sd3": BaseModel(
        "stabilityai/stable-diffusion-3-medium",
        "Stability AI Community License",
        "stabilityai-ai-community",
        "https://huggingface.co/stabilityai/stable-diffusion-3-medium/blob/main/LICENSE.md",
    ),
}
_SD35 = BaseModel(
    "stabilityai/stable-diffusion-3.5-medium",
    "Stability AI Community License",
    "stabilityai-ai-community",
    "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
)
_EMBEDDED = BaseModel("", "Apache-2.0", "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")


def base_model_choices(family: str, title: str, *, embedded: bool = False) -> list[str]:
    """Labels that Civitai's upload form offers for such a checkpoint, the suggested one first.

    Pony, Illustrious and NoobAI have SDXL's own tensors, so a person has to say which it is.

    Args:
        family: sd1, sdxl or sd3.
        title: `Detection.title` of the checkpoint; of SDXL with v-prediction most are NoobAI's.
        embedded: whether it is a teacher that ships with this program.
    """
    choices = [OTHER] if embedded else list(CHOICES[family])
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
    if family == "sd3":
        name = "SD 3.5" if "3.5" in title else "SD 3"
        return (
            f"Civitai offers no label for {name} any more, so it has to be Other, where few people "
            "look. Hugging Face is the realistic place for this LoRA; README.md is its model card."
        )
    if family == "sdxl":
        return (
            "Pony, Illustrious and NoobAI checkpoints have the same tensor names and shapes as "
            "SDXL 1.0, so they cannot be told apart by the file. If yours is one of them, choose "
            "its label: --base-model Pony, Illustrious or NoobAI."
        )
    return "Any SD 1.x checkpoint is listed under SD 1.5, unless it descends from SD 1.4."


def base_model(family: str, title: str, *, embedded: bool = False) -> BaseModel:
    """The base model of a family, whose licence its fine-tunes and students usually inherit."""
    if embedded:
        return _EMBEDDED
    return _SD35 if family == "sd3" and "3.5" in title else _BASES[family]


def license_note(family: str, title: str, *, embedded: bool = False) -> str:
    """One paragraph on the licence; no legal advice."""
    base = base_model(family, title, embedded=embedded)
    if embedded:
        return "The teacher ships with DP-DMD Studio under Apache-2.0."
    name = {"sd1": "Stable Diffusion 1.x", "sdxl": "SDXL 1.0"}.get(family, title)
    return (
        f"This LoRA was distilled from a {title} checkpoint. The base model {name} is under the "
        f"{base.license}, whose terms usually hold for what is derived from it. If the checkpoint "
        "is a fine-tune or a merge, its own licence counts too: look at its original page."
    )

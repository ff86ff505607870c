"""The settings of a distillation as node inputs, made from DistillConfig and the presets.

A setting that presets touch is 0 on the node until somebody sets it: the preset's value, or else
the default. All others have their default on the node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...app.config.distill_config import DistillConfig, without_removed
from ...app.config.presets import DEMO, MEMORIES, PRESETS, preset, presets_of
from ...app.runs.settings_file import import_settings, parse_table
from ...core.errors import SettingsError
from ..host.inputs import ZERO_IS_AUTO, Input, node_input

SHOWN = (
    "steps",
    "num_steps",
    "resolution",
    "batch_size",
    "student_rank",
    "student_lr",
    "teacher_guidance",
    "diversity_weight",
    "seed",
)
"""Settings with an input of their own; the others are given as JSON."""
SHOWN_LAST = ("teacher_negative",)
"""The same, come later: optional and last, so that saved workflows find their values again."""
PLAIN = ("steps", "num_steps", "teacher_negative")
"""Those in sight; the page keeps the others behind "advanced"."""
AUTO, NO_PRESET, DEMO_PRESET = "auto", "none", "demo"
PRESET_CHOICES = (AUTO, NO_PRESET, DEMO_PRESET, *MEMORIES)
PRESET_TOOLTIP = (
    "Settings that suit a card's memory. auto takes the one for this card, and the demo's for the "
    "demo checkpoints; a setting below that is not 0 wins over it."
)
NEGATIVE = "The negative prompt that you always use with this checkpoint."
GIB, NAMED_GB = 2**30, 0.94  # a card sold as 24 GB says 23.6 GiB or less
FAMILYS_OWN = ("teacher_guidance",)
"""Those for which 0 takes what suits the checkpoint's family, whatever the preset."""
_FIELDS = {spec.name: spec for spec in dataclasses.fields(DistillConfig)}
_TOUCHED = {name for sizes in PRESETS.values() for one in sizes.values() for name in one} | set(
    DEMO
)


def knob_inputs(names: tuple[str, ...] = SHOWN) -> dict[str, Input]:
    """Name -> input of every shown setting."""
    return {name: _input(_FIELDS[name]) for name in names}


def _input(spec: dataclasses.Field[Any]) -> Input:
    default: Any = spec.default
    text, touched = spec.metadata["help"], spec.name in _TOUCHED
    more: dict[str, Any] = {} if spec.name in PLAIN else {"advanced": True}
    more |= {ZERO_IS_AUTO: True} if touched or spec.name in FAMILYS_OWN else {}
    if spec.metadata["choices"] or isinstance(default, bool | str):
        kind = spec.metadata["choices"] or ("STRING" if isinstance(default, str) else "BOOLEAN")
        lines = {"multiline": True, "placeholder": NEGATIVE} if spec.name in SHOWN_LAST else {}
        return node_input(kind, text, default=default, **lines, **more)
    if touched:
        text = f"{text} 0 takes the preset's, else {default:g}."
    limits = {"min": 0 if touched else spec.metadata["low"], "max": spec.metadata["high"]}
    start = 0 if touched else default
    if isinstance(default, int):
        # A seed that the page changes by itself would train anew each time.
        limits |= {"control_after_generate": False}
        return node_input("INT", text, default=start, **limits, **more)
    steps = {"step": default / 10 or 0.1, "round": False}
    return node_input("FLOAT", text, default=float(start), **limits, **steps, **more)


@dataclasses.dataclass(frozen=True)
class Card:
    """What a preset is chosen for: a model, and the memory of the card in bytes."""

    family: str
    title: str
    is_demo: bool
    memory: int


def config_of(
    shown: Mapping[str, Any], chosen: str, card: Card, settings_json: str
) -> tuple[DistillConfig, list[str]]:
    """(settings, notes) of a node's inputs: defaults, then preset, inputs, and the JSON.

    Args:
        shown: the values of the inputs by name.
        chosen: one of PRESET_CHOICES.

    Raises:
        SettingsError: unknown names, values that are not allowed, no such preset.
    """
    values, notes = preset_values(chosen, card)
    for name in (*SHOWN, *SHOWN_LAST):
        given = shown.get(name, _FIELDS[name].default)
        if name not in _TOUCHED or given:
            values[name] = _as_knob(name, given)
    values |= json_settings(settings_json)
    return DistillConfig.from_dict(values), notes


def _as_knob(name: str, value: Any) -> Any:
    """The value in the knob's own type: a page may send 4 for 4.0."""
    expected = type(_FIELDS[name].default)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value.strip() if isinstance(value, str) else value


def preset_values(chosen: str, card: Card) -> tuple[dict[str, Any], list[str]]:
    """(settings, notes) of a preset."""
    if chosen == NO_PRESET:
        return {}, []
    if chosen == DEMO_PRESET or (chosen == AUTO and card.is_demo):
        return dict(DEMO), ["Preset: demo."]
    if chosen != AUTO:
        return preset(card.family, card.title, chosen), [f"Preset: {chosen}."]
    if not card.memory:
        return {}, ["Preset: none, as there is no graphics card."]
    sizes = {int(size.removesuffix("gb")): size for size in presets_of(card.family, card.title)}
    fitting = [size for size in sizes if size * NAMED_GB * GIB <= card.memory]
    size = max(fitting, default=min(sizes))
    has = f"this card has {card.memory / GIB:.0f} GB"
    note = f"Preset: {sizes[size]} ({has})."
    if not fitting:
        note = f"Preset: {sizes[size]}, the smallest for this model, but {has}; it may not fit."
    return preset(card.family, card.title, sizes[size]), [note]


def json_settings(text: str) -> dict[str, Any]:
    """Settings by name: a plain table, or a settings file of this project.

    Raises:
        SettingsError: no JSON object, or what a settings file may not hold.
    """
    if not text.strip():
        return {}
    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        raise SettingsError(
            'settings_json is no table of settings. Write for example {"fake_lr": 0.0002}, or '
            "leave it empty."
        )
    found = parse_table(text.lstrip("\ufeff"), "settings_json")
    if "kind" in found:
        return import_settings(text).to_dict()
    found = without_removed(found)
    known = {name: value for name, value in found.items() if name in _FIELDS}
    if len(known) < len(found):
        unknown = ", ".join(sorted(set(found) - set(known)))[:200]
        raise SettingsError(
            f"settings_json names {unknown}, which is no setting. Known are {', '.join(_FIELDS)}."
        )
    return {name: _as_knob(name, value) for name, value in known.items()}

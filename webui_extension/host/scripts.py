"""Scripts in txt2img and img2img, and the generation that they see."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from .page import on

Processing = Any
"""The host's StableDiffusionProcessing: one generation."""


def script_base() -> type:
    """The host's kind of script, there in every generation."""
    from modules import scripts

    class Script(scripts.Script):
        """As the host's, always visible."""

        def show(self, is_img2img: bool) -> Any:
            """In both tabs, always."""
            return scripts.AlwaysVisible

    return Script


def add_script(kind: type) -> None:
    """Give the host a script; an earlier one of its name goes."""
    from modules import scripts

    path = str(Path(__file__).resolve().parents[2] / "scripts" / "dpdmd_studio.py")
    base = str(Path(__file__).resolve().parents[2])
    known = scripts.scripts_data
    known[:] = [data for data in known if data.script_class.__name__ != kind.__name__]
    known.append(scripts.ScriptClassData(kind, path, base, kind.__module__))


def comment(p: Processing, text: str) -> None:
    """Show a note below the image, in the hosts that have a place for notes."""
    if hasattr(p, "comment"):
        p.comment(text)


def is_second_pass(p: Processing) -> bool:
    """Whether an image is redone here: the hires pass, or one that ADetailer makes of its own."""
    return bool(getattr(p, "is_hr_pass", False) or getattr(p, "_ad_inner", False))


def override(p: Processing, name: str, value: Any) -> None:
    """Have an option of the host at a value for this generation, unless it asks for another.

    It works from a script's `before_process` alone. Where the host would not put the option back,
    it stays as it is.
    """
    from modules import shared

    wanted = getattr(p, "override_settings", None)
    known = name in getattr(shared.opts, "data_labels", {})
    if known and wanted is not None and getattr(p, "override_settings_restore_afterwards", True):
        wanted.setdefault(name, value)


def hires_prompts_of(p: Processing) -> list[str]:
    """The prompts of the hires pass, where it has its own."""
    if not getattr(p, "enable_hr", False):
        return []
    with_styles = getattr(p, "all_hr_prompts", None)
    if with_styles:
        return list(dict.fromkeys(with_styles))
    given = getattr(p, "hr_prompt", "") or []
    return [text for text in (given if isinstance(given, list) else [given]) if text]


def component(name: str) -> Any:
    """A component of the host's page by its id, None if it has not been made yet."""
    return _components.get(name)


def when_made(names: Sequence[str], function: Callable[[Sequence[Any]], None]) -> None:
    """Call a function with components of the host's page as soon as all of them are made.

    Where the host lacks one of them it is never called.
    """
    _waiting.append((tuple(names), function))
    _serve_waiting()


_components: dict[str, Any] = {}
_waiting: list[tuple[tuple[str, ...], Callable[[Sequence[Any]], None]]] = []
WATCHED = ("prompt", "sampling", "scheduler", "steps", "cfg_scale")


def watch_components() -> None:
    """Note the controls of ours to fill and to read while the host builds its page."""
    wanted = {f"{tab}_{name}" for tab in ("txt2img", "img2img") for name in WATCHED}

    def forget() -> None:
        _components.clear()  # of a page that is built anew
        _waiting.clear()

    def note(component: Any, **options: Any) -> None:
        name = options.get("elem_id") or ""
        if name in wanted:
            _components[name] = component
            _serve_waiting()

    on("before_ui", forget)
    on("after_component", note)


def _serve_waiting() -> None:
    for entry in list(_waiting):
        names, function = entry
        if all(name in _components for name in names):
            _waiting.remove(entry)
            function([_components[name] for name in names])


def prompts_of(p: Processing) -> list[str]:
    """The prompts of a generation with the styles chosen for it, each once."""
    from modules import shared

    if getattr(p, "all_prompts", None):
        return list(dict.fromkeys(p.all_prompts))
    given = p.prompt if isinstance(p.prompt, list) else [p.prompt]
    styles = getattr(p, "styles", None) or []
    return [shared.prompt_styles.apply_styles_to_prompt(text or "", styles) for text in given]


def plotted_axes(p: Processing) -> set[str]:
    """What the host's X/Y/Z plot around this generation varies, by the names of its axes."""
    values = list(getattr(p, "script_args", None) or [0])
    scripts = getattr(getattr(p, "scripts", None), "selectable_scripts", None) or []
    chosen = values[0] if isinstance(values[0], int) else 0
    if not 1 <= chosen <= len(scripts):
        return set()
    script = scripts[chosen - 1]
    axes = getattr(script, "current_axis_options", [])
    kinds = values[script.args_from : script.args_to][:9:3]
    return {axes[kind].label for kind in kinds if isinstance(kind, int) and 0 <= kind < len(axes)}


def set_settings(
    p: Processing,
    sampler: str,
    steps: int,
    guidance_scale: float,
    plotted: Collection[str] = (),
) -> None:
    """Sampler with its own schedule, steps and guidance of a generation, hires pass included.

    Args:
        plotted: axes of an X/Y/Z plot, whose values stay; other samplers get our schedule then.
    """
    if "Steps" not in plotted:
        p.steps = steps
    if "CFG Scale" not in plotted:
        p.cfg_scale = guidance_scale
    if hasattr(p, "scheduler") and "Schedule type" not in plotted:
        p.scheduler = sampler if "Sampler" in plotted else "Automatic"
    if "Sampler" not in plotted:
        p.sampler_name = sampler
    if hasattr(p, "hr_second_pass_steps") and "Hires steps" not in plotted:
        p.hr_second_pass_steps = 0  # those of the first pass
    if hasattr(p, "hr_cfg"):  # Forge
        p.hr_cfg = guidance_scale

"""Scripts in txt2img and img2img, and the generation that they see."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Collection
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


def prompt_box(tab: str) -> Any:
    """The component of a tab's prompt, None if it has not been made yet."""
    return _components.get(f"{tab}_prompt")


_components: dict[str, Any] = {}


def watch_components() -> None:
    """Note the prompt boxes while the host builds its page."""

    def note(component: Any, **options: Any) -> None:
        name = options.get("elem_id") or ""
        if name in ("txt2img_prompt", "img2img_prompt"):
            _components[name] = component

    on("after_component", note)


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

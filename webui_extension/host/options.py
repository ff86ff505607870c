"""Our settings on the host's page."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def option(name: str, default: Any) -> Any:
    """The value of one of our settings."""
    from modules import shared

    return getattr(shared.opts, name, default)


def add_setting(section: tuple[str, str], setting: Mapping[str, Any]) -> None:
    """Put a setting on the host's page.

    Args:
        setting: name, default, label and info; "private" keeps it from the host's own API,
            "infotext" is its name in images, from which it can be pasted.
    """
    import gradio as gr
    from modules import shared

    kind = gr.Checkbox if isinstance(setting["default"], bool) else gr.Textbox
    info = shared.OptionInfo(setting["default"], setting["label"], kind, section=section)
    info.restrict_api = bool(setting.get("private"))
    info.infotext = setting.get("infotext")
    shared.opts.add_option(setting["name"], info.info(setting["info"]))


def on_settings(function: Callable[[], None]) -> None:
    """Call the function when the host collects settings."""
    from modules import script_callbacks

    script_callbacks.on_ui_settings(function)

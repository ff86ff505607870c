"""What the hosts see of the package: ComfyUI's nodes, the web UI's parts, and the pages, as JSON.

Both hosts are stand-ins; everything is reached by the names that a host itself uses, the package
root's tables and the web UI extension's `register`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy_host
import dpdmd_studio
import pytest
from dpdmd_studio import webui_extension
from dpdmd_studio.app.gui import studio
from dpdmd_studio.app.library import choices as sources
from dpdmd_studio.app.library import surroundings
from golden_runs import Workplace

# Paths of the machine and what only it has are left out of the goldens.
SHOWN = (
    "label", "info", "placeholder", "value", "choices", "elem_id", "minimum", "maximum", "step",
    "lines", "interactive", "visible", "multiselect", "allow_custom_value", "variant", "open",
    "file_count", "file_types", "type",
)  # fmt: skip


def plain(value: Any, place: Workplace) -> Any:
    """A value in JSON's own types, without the machine's paths."""
    if isinstance(value, Mapping):
        return {str(name): plain(item, place) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, place) for item in value]
    if isinstance(value, type):
        return f"<{value.__name__}>"
    if isinstance(value, str | Path):
        return place.portable(str(value))
    return value


# ComfyUI


def nodes(place: Workplace) -> dict[str, Any]:
    """Every node: its name in the menu, what goes in and what comes out."""
    mappings = dpdmd_studio.NODE_CLASS_MAPPINGS
    titles = dpdmd_studio.NODE_DISPLAY_NAME_MAPPINGS
    assert list(titles) == list(mappings)
    loras = place.folder / "comfyui-loras"
    loras.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPDMD_HOME", str(place.home))
        comfy_host.install(patch, loras)
        return {name: _node(kind, titles[name], place) for name, kind in mappings.items()}


def _node(kind: Any, title: str, place: Workplace) -> dict[str, Any]:
    names = (
        "RETURN_TYPES", "RETURN_NAMES", "OUTPUT_TOOLTIPS", "OUTPUT_NODE", "OUTPUT_IS_LIST",
        "INPUT_IS_LIST", "FUNCTION", "CATEGORY", "DESCRIPTION", "SEARCH_ALIASES", "EXPERIMENTAL",
        "DEPRECATED",
    )  # fmt: skip
    inputs = {
        group: [[name, plain(spec, place)] for name, spec in given.items()]
        for group, given in kind.INPUT_TYPES().items()
    }
    found = {name: plain(getattr(kind, name), place) for name in names if hasattr(kind, name)}
    return {"title": title, "inputs": inputs, **found, "web": dpdmd_studio.WEB_DIRECTORY}


# The pages


def page_parts(blocks: Any, place: Workplace) -> list[dict[str, Any]]:
    """The components of a gradio page in the order in which they were made."""
    found = []
    for block in blocks.blocks.values():
        if block.get_block_name() == "form":  # gradio's own, around neighbours
            continue
        settings = block.get_config()
        shown = {name: settings[name] for name in SHOWN if settings.get(name) is not None}
        found.append({"kind": block.get_block_name(), **plain(shown, place)})
    return found


@contextlib.contextmanager
def alone(place: Workplace) -> Iterator[None]:
    """The pages see an empty data folder and no models of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPDMD_HOME", str(place.folder / "page-home"))
        patch.setattr(sources, "default_folders", list)
        patch.setattr(surroundings, "current", surroundings.ALONE)
        yield


def pages(place: Workplace) -> list[dict[str, Any]]:
    """All pages of the GUI, as they are built."""
    import gradio as gr

    with alone(place), gr.Blocks(analytics_enabled=False) as blocks:
        studio.build()
    return page_parts(blocks, place)


# The web UI


class Host:
    """A stand-in for A1111's `modules`: notes what an extension registers."""

    def __init__(self, folder: Path) -> None:
        self.settings: list[dict[str, Any]] = []
        self.callbacks: dict[str, list[Any]] = {}
        self.optimizers: list[Any] = []
        common = SimpleNamespace(SamplerData=_record("name", "constructor", "aliases", "options"))
        schedulers = SimpleNamespace(
            Scheduler=_record("name", "label", "function", "need_inner_model"),
            schedulers=[],
            schedulers_map={},
        )
        self.samplers = SimpleNamespace(
            all_samplers=[], all_samplers_map={}, set_samplers=lambda: None
        )
        self.scripts = SimpleNamespace(
            Script=type("Script", (), {}),
            AlwaysVisible="always",
            scripts_data=[],
            ScriptClassData=_record("script_class", "path", "basedir", "module"),
        )
        self.schedulers = schedulers
        self.modules = {
            "sd_samplers": self.samplers,
            "sd_samplers_common": common,
            "sd_schedulers": schedulers,
            "script_callbacks": _Callbacks(self.callbacks),
            "scripts": self.scripts,
            "shared": SimpleNamespace(
                opts=SimpleNamespace(add_option=self._add), OptionInfo=_Option,
                cmd_opts=SimpleNamespace(), sd_model=None,
            ),
            "sd_models": SimpleNamespace(
                model_data=SimpleNamespace(sd_model=None), model_path=str(folder),
                checkpoints_list={},
            ),
            "paths": SimpleNamespace(models_path=str(folder)),
            "extensions": SimpleNamespace(active=list),
        }  # fmt: skip

    def _add(self, name: str, option: _Option) -> None:
        self.settings.append({"name": name, **option.facts, **option.later()})


class _Option:
    """As the host's OptionInfo."""

    def __init__(self, default: Any, label: str, component: Any, *, section: Any) -> None:
        self.facts = {
            "default": default, "label": label, "component": component.__name__,
            "section": list(section),
        }  # fmt: skip

    def info(self, text: str) -> _Option:
        self.facts["info"] = text
        return self

    def later(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "facts"}


class _Callbacks:
    """Every `on_...` of the host's script_callbacks."""

    def __init__(self, found: dict[str, list[Any]]) -> None:
        self._found = found

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return self._found.setdefault(name, []).append


def _record(*names: str) -> Any:
    def made(*values: Any, **named: Any) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(names, values, strict=False)), **named)

    return made


def webui(place: Workplace) -> dict[str, Any]:
    """What the web UI is given: samplers, scripts with their controls, settings, and the tab."""
    import gradio as gr

    host = Host(place.folder / "webui-models")
    with alone(place), pytest.MonkeyPatch.context() as patch:
        for name, attributes in [("", SimpleNamespace()), *host.modules.items()]:
            full = f"modules.{name}".rstrip(".")
            module = attributes if isinstance(attributes, _Callbacks) else ModuleType(full)
            if isinstance(module, ModuleType):
                vars(module).update(vars(attributes))
            patch.setitem(sys.modules, full, module)
            if name:
                setattr(sys.modules["modules"], name, module)
        webui_extension.register()
        for listed in host.callbacks.get("on_list_optimizers", []):
            listed(host.optimizers)
        for add in host.callbacks["on_ui_settings"]:
            add()
        found = {
            "samplers": [plain([s.name, s.aliases, s.options], place)
                         for s in host.samplers.all_samplers],
            "schedulers": [[s.name, s.label, s.need_inner_model]
                           for s in host.schedulers.schedulers],
            "optimizers": [[o.name, o.label, o.priority, o.title()] for o in host.optimizers],
            "settings": plain(host.settings, place),
            "callbacks": {name: len(given) for name, given in sorted(host.callbacks.items())},
            "scripts": [],
        }  # fmt: skip
        for data in host.scripts.scripts_data:
            script, entry = data.script_class(), {"class": data.script_class.__name__}
            for tab in ("txt2img", "img2img"):
                with gr.Blocks(analytics_enabled=False) as blocks:
                    made = script.ui(tab == "img2img") if hasattr(script, "ui") else None
                entry[tab] = page_parts(blocks, place)
                entry[f"{tab} controls"] = len(made or [])
            infotext = getattr(script, "infotext_fields", [])
            entry |= {
                "title": script.title(),
                "shown": [str(script.show(is_img2img)) for is_img2img in (False, True)],
                "infotext": [[control.label, name] for control, name in infotext],
                "pasted": list(getattr(script, "paste_field_names", [])),
            }
            found["scripts"].append(entry)
        for tabs in host.callbacks["on_ui_tabs"]:
            found["tabs"] = [
                {"title": title, "id": id, "parts": page_parts(blocks, place)}
                for blocks, title, id in tabs()
            ]
    found["pasted"] = [_pasted(host, text) for text in INFOTEXTS]
    return plain(found, place)


INFOTEXTS: tuple[dict[str, Any], ...] = (
    {},
    {"DP-DMD": "off"},
    {"DP-DMD": "few: 4 steps, CFG 1"},
    {"DP-DMD": "few: 4 steps, CFG 1", "DP-DMD anchored": "trained steps at CFG 5"},
    {"DP-DMD": "few: 4 steps, CFG 1", "DP-DMD anchored": "3 steps at CFG 4.5"},
    {"DP-DMD": "few: 4 steps, CFG 1", "DP-DMD anchored": "1 step at CFG 1"},
    {"DP-DMD": "few: 4 steps, CFG 1", "DP-DMD kind": "LCM", "DP-DMD LoRA": "few"},
)


def _pasted(host: Host, infotext: dict[str, Any]) -> dict[str, Any]:
    found = dict(infotext)
    for paste in host.callbacks["on_infotext_pasted"]:
        paste("", found)
    return found

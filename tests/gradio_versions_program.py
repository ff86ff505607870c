"""Run by a Python that has one version of gradio: builds the pages as a host's tab, and uses them.

`python gradio_versions_program.py CHECKOUT` serves the page on a free port of this computer, asks
for it as a browser does, presses "Use these", and prints what came as one JSON object.
"""

from __future__ import annotations

import json
import runpy
import sys
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import gradio as gr


def tab() -> gr.Blocks:
    from dpdmd_studio.app.gui import studio

    with gr.Blocks(analytics_enabled=False) as blocks:
        for show in studio.build():
            show(blocks.load)
    return blocks


def asked(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def component(config: dict, **wanted: object) -> dict:
    found = [one for one in config["components"] if wanted.items() <= one.get("props", {}).items()]
    assert len(found) == 1, (wanted, found)
    return found[0]


def pressed(url: str, config: dict, button: int, data: list) -> list:
    """The updates that a click brings."""
    events = config["dependencies"]
    index = next(
        place
        for place, event in enumerate(events)
        if any(target in (button, [button, "click"]) for target in event["targets"])
    )
    prefix = config.get("api_prefix") or ""
    place = events[index].get("id", index)
    body = {"data": data, "fn_index": place, "session_hash": "one", "event_data": None}
    return asked(f"{url}{prefix}/run/predict", body)["data"]


def is_ours(file: Path, checkout: Path) -> bool:
    """Whether a warning comes from our code, not from a library in the checkout's environment."""
    return file.is_relative_to(checkout) and ".venv" not in file.parts


def main(checkout: Path) -> None:
    runpy.run_path(str(checkout / "mount.py"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gr.Blocks(analytics_enabled=False) as page, gr.Tabs(), gr.Tab("DP-DMD"):
            tab().render()
    ours = [str(one.message) for one in caught if is_ours(Path(one.filename), checkout)]
    page.launch(prevent_thread_lock=True, quiet=True, show_error=True, inbrowser=False)
    url = page.local_url.rstrip("/")
    config = asked(f"{url}/config")
    starter = component(config, label="Starter prompts")
    updates = pressed(url, config, component(config, value="Use these")["id"], ["tags", 6])
    chosen = starter["props"]["choices"]
    emoji = next(one for one in chosen if "Emoji" in str(one))
    value = emoji[1] if isinstance(emoji, (list, tuple)) else emoji
    again = pressed(url, config, component(config, value="Use these")["id"], [value, 6])
    ids = [one["props"].get("elem_id") for one in config["components"]]
    facts = {
        "gradio": gr.__version__,
        "components": len(config["components"]),
        "warnings": ours,
        "loads": sum(
            event.get("trigger") == "load" or "load" in str(event["targets"])
            for event in config["dependencies"]
        ),
        "tags": updates[0]["value"],
        "emoji": again[0]["value"],
        "ids": sorted(name for name in ids if name and name.startswith("dpdmd")),
    }
    sys.stdout.write("FACTS " + json.dumps(facts) + "\n")
    page.close()


main(Path(sys.argv[1]))

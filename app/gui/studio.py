"""All pages together, inside the caller's Blocks: the standalone GUI's and, in a host, a tab's."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .pages import compare as compare_page
from .pages import distill as distill_page
from .pages import runs as runs_page
from .pages import share as share_page
from .widgets.run_pieces import Address
from .widgets.runs_view import SHARE
from .widgets.wiring import on


def build(address: Address | None = None) -> list[Any]:
    """Build the four pages; functions that, given an event, bring one up to date.

    Args:
        address: where a browser finds a job's report; without it reports go into the page.
    """
    selected = gr.Textbox(
        value="", elem_id=runs_page.SELECTED, elem_classes=["dp-hidden"], show_label=False
    )
    with gr.Tabs(elem_id="dpdmd-tabs") as tabs:
        with gr.Tab("Distil", id="distil") as distil_tab:
            distil = distill_page.build(selected, tabs)
        with gr.Tab("Runs", id="runs") as runs_tab:
            runs = runs_page.build(selected, address)
        with gr.Tab("Compare", id="compare") as compare_tab:
            compare = compare_page.build(selected, tabs, address)
        with gr.Tab("Share", id="share") as share_tab:
            share = share_page.build(selected, tabs)

    def show_runs(event: Any) -> Any:
        return runs_page.refresh_event(event, runs, address)

    shown = (*share.opened, "tabs")
    on(runs[SHARE].click, share_page.of_run, share.parts, ("selected", "checkpoint"), shown)
    distill_page.relist(distil_tab.select, distil)
    show_runs(runs_tab.select)
    compare.when(compare_tab.select)
    share.when(share_tab.select)
    for page in (distil, compare, share):
        for event in page.done:
            show_runs(event.then)
    return [distil.when, show_runs]

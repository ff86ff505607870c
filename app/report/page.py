"""The report as one HTML page: no script, no request, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .charts import Curve, known_curves, line_chart, readable_number, running_mean, series
from .images import embedded_side, picture_tag
from .style import STYLE
from .table import comparison, measure_terms, tiles, verdict

if TYPE_CHECKING:
    from .report import Arm, ReportData

PLAIN_HOST_FACT = "Sample it with"
CHECKPOINT_FACT = "Checkpoint"
# Picture rows that are unfolded at first, so that the table below stays within reach.
UNFOLDED_ROWS = 12
# More arms than these wrap, three abreast.
MOST_ARMS_ABREAST = 4
PREVIEWS, PREVIEW_SIDE = 8, 512
# Nothing may be loaded and nothing may run: the page is a document.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(data: ReportData) -> str:
    """The whole page."""
    sections = [
        _pictures(data),
        _numbers(data),
        _training(data),
        _previews(data),
        _use(data),
        _facts(data),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(data.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(data.title)}</h1>
<p class="subtitle">{escape(data.subtitle)}</p>
<p class="verdict">{verdict(data)}</p>
{tiles(data)}
</header>
<main>
{"".join(sections)}
</main>
<footer><p>Made by DP-DMD Studio. The same numbers are in report.json, the same pictures in
the grid-*.png files beside this page.</p></footer>
</body>
</html>
"""


def _section(name: str, title: str, intro: str, body: str) -> str:
    lead = f'<p class="intro">{intro}</p>' if intro else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{title}</h2>{lead}{body}</section>\n'
    )


def _pictures(data: ReportData) -> str:
    """Seed grids of all arms, prompt by prompt; what exceeds the first screens is folded."""
    side = embedded_side(len(data.arms) * len(data.prompts) * len(data.seeds))
    columns = _seed_columns(len(data.seeds), len(data.arms))
    rows = math.ceil(len(data.seeds) / columns)
    prompts = [_prompt(data, index, columns, side) for index in range(len(data.prompts))]
    first = max(1, UNFOLDED_ROWS // rows)
    first = len(prompts) if len(prompts) <= first + 1 else first
    body = "".join(prompts[:first])
    if prompts[first:]:
        summary = f"<summary>Show {len(prompts) - first} more prompts</summary>"
        body += f"<details>{summary}{''.join(prompts[first:])}</details>"
    few = len(data.arms) <= MOST_ARMS_ABREAST
    heads = _arm_heads(data) if few else ""
    seeds = _seed_names(data.seeds)
    intro = (
        "The same place in each block is the same start noise. Look for the student's pictures "
        f"to be as clean, and as different from one another, as the teacher's. {seeds}"
    )
    kind = "few" if few else "many"
    style = f"--arms:{len(data.arms) if few else 3};--columns:{columns}"
    body = f'<div class="{kind}" style="{style}">{heads}{body}</div>'
    return _section("pictures", "Same prompts, same seeds", intro, body)


def _seed_columns(seeds: int, arms: int) -> int:
    """Seeds side by side in one block, so that blocks side by side stay large enough."""
    most = 12 // (arms if arms <= MOST_ARMS_ABREAST else 3)
    return math.ceil(seeds / math.ceil(seeds / most))


def _seed_names(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"Seeds {seeds[0]} to {seeds[-1]}."
    return f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."


def _arm_heads(data: ReportData) -> str:
    own = data.arms[data.focus]
    heads = "".join(
        f"<div{_own(arm is own)}><h3>{escape(arm.name)}</h3>"
        f"<p>{arm.evaluations} evaluations a picture</p></div>"
        for arm in data.arms
    )
    return f'<div class="arms heads" aria-hidden="true">{heads}</div>'


def _own(own: bool) -> str:
    return ' class="own"' if own else ""


def _prompt(data: ReportData, index: int, columns: int, side: int) -> str:
    prompt = data.prompts[index]
    figures = "".join(_figure(arm, data, index, side) for arm in data.arms)
    text = escape(prompt.strip()) or '<span class="soft">(no prompt)</span>'
    return f'<div class="prompt"><h3>{text}</h3><div class="arms">{figures}</div></div>\n'


def _figure(arm: Arm, data: ReportData, index: int, side: int) -> str:
    images = "".join(
        picture_tag(picture, f"{arm.name}, prompt {index + 1}, seed {seed}", side)
        for picture, seed in zip(arm.pictures[index], data.seeds, strict=True)
    )
    caption = f"<figcaption>{escape(arm.name)}</figcaption>"
    return f'<figure>{caption}<div class="seeds">{images}</div></figure>'


def _numbers(data: ReportData) -> str:
    intro = (
        "All arms made the same prompts from the same seeds. The small figures compare with the "
        "teacher; differences are in percentage points unless another unit is named."
    )
    keys = [key for key in data.measure_labels if any(key in a.measures for a in data.arms)]
    body = comparison(data, keys) + measure_terms(data, keys)
    others = dict.fromkeys(k for a in data.arms for k in a.measures if k not in keys)
    if others:
        body += f"<details><summary>More measures</summary>{comparison(data, [*others])}</details>"
    return _section("numbers", "In numbers", intro, body)


def _training(data: ReportData) -> str:
    figures = [_chart(data, curve) for curve in known_curves(data.metrics)]
    if not figures:
        return _section("training", "How training went", "", "<p>No updates were recorded.</p>")
    intro = (
        "Left to right: student updates. Faint: every update; strong: their running mean. "
        "The rarest extremes are drawn at the edge."
    )
    body = f'<div class="charts">{"".join(figures)}</div>'
    return _section("training", "How training went", intro, body)


def _chart(data: ReportData, curve: Curve) -> str:
    steps, values = series(data.metrics, curve.key)
    smooth = running_mean(values) if curve.smoothed else values
    end = f"ends at {readable_number(smooth[-1])}" if len(values) else ""
    left_out = sum(curve.key in line for line in data.metrics) - len(values)
    gap = f" {left_out} updates without a finite value are left out." if left_out else ""
    caption = escape(curve.caption + (gap if len(values) else ""))
    return (
        f'<figure class="chart"><div class="top"><h3>{escape(curve.title)}</h3>'
        f"<span>{end}</span></div>{line_chart(curve.title, steps, values, smooth)}"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _previews(data: ReportData) -> str:
    if not data.previews:
        return ""
    count = len(data.previews)
    wanted = min(count, PREVIEWS)
    picked = sorted({round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)})
    figures = "".join(
        f"<figure><figcaption>After {step:,} updates</figcaption>"
        f"{picture_tag(sheet, f'Preview after {step} updates', PREVIEW_SIDE)}</figure>"
        for step, sheet in (data.previews[index] for index in picked)
    )
    body = f'<div class="previews">{figures}</div>'
    return _section(
        "previews", "While it learnt", "Fixed prompts and seeds, as training went.", body
    )


def _use(data: ReportData) -> str:
    if not data.lora:
        return ""
    teacher = data.facts.get(CHECKPOINT_FACT, "")
    named = f": {escape(teacher)}" if teacher else ""
    items = [
        f"Put <code>{escape(data.lora)}</code> into <code>models/loras</code> (ComfyUI) or "
        "<code>models/Lora</code> (the WebUI family).",
        f"Load it at strength 1.0 on the checkpoint it was made from{named}.",
        "With DP-DMD Studio's own sampler there is nothing to set: "
        "it reads its steps and noise levels from the file.",
    ]
    plain = data.facts.get(PLAIN_HOST_FACT, "")
    if plain:
        items.append(f"Settings in a host without it: <strong>{escape(plain)}</strong>.")
    body = f'<ol class="use">{"".join(f"<li>{item}</li>" for item in items)}</ol>'
    return _section("use", "How to use this LoRA", "", body)


def _facts(data: ReportData) -> str:
    told = {PLAIN_HOST_FACT} if data.lora else set()
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(text))}</dd></div>"
        for name, text in data.facts.items()
        if name not in told
    )
    body = f'<dl class="facts">{rows}</dl>' if rows else ""
    if data.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in data.notes)
        body += f'<ul class="notes">{notes}</ul>'
    return _section("facts", "Facts", "", body) if body else ""

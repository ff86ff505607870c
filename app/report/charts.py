"""Small line charts as inline SVG (templates/chart.svg): what a report shows of a run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ..runs.curves import CURVES, Curve
from ..runs.tables import finite
from .templating import html_templates

Array = NDArray[np.float64]

WIDTH, HEIGHT = 340, 176
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 24
MOST_POINTS = 300
MOST_TICKS = 6
# Series that span more than this factor are drawn on a logarithmic axis.
LOGARITHMIC_SPAN = 30.0
# The running mean looks at this share of all updates.
SMOOTHING_SHARE = 0.06
# Percentiles beyond which values count as the rarest extremes, in series of at least this length.
RAREST = (1.0, 99.0)
CUTTING_LENGTH = 100


@dataclass(frozen=True)
class Chart:
    """A curve as it is drawn.

    Attributes:
        last: the last value of its smooth line; "" where nothing was measured.
        drawing: an <svg>; "" where nothing was measured.
        left_out: updates that have no finite value.
    """

    title: str
    caption: str
    last: str
    drawing: Markup
    left_out: int


def chart(metrics: Sequence[Mapping[str, object]], curve: Curve) -> Chart:
    """The curve of the metrics' lines."""
    steps, values = series(metrics, curve.key)
    smooth = running_mean(values) if curve.smoothed else values
    left_out = sum(curve.key in line for line in metrics) - len(values)
    last = readable_number(smooth[-1]) if len(values) else ""
    drawing = line_chart(curve.title, steps, values, smooth)
    return Chart(curve.title, curve.caption, last, drawing, left_out)


def known_curves(metrics: Sequence[Mapping[str, object]]) -> list[Curve]:
    """The curves that any line of `metrics` has; metrics not known here come last, by name."""
    present = dict.fromkeys(key for line in metrics for key in line if key != "step")
    known = [curve for curve in CURVES if curve.key in present]
    named = {curve.key for curve in known}
    others = [key for key in present if key not in named]
    return known + [Curve(key, readable(key), "") for key in others if len(series(metrics, key)[0])]


def series(metrics: Sequence[Mapping[str, object]], key: str) -> tuple[Array, Array]:
    """Steps and finite values of one metric; lines without a finite number are left out."""
    pairs = [(line.get("step", index + 1), line.get(key)) for index, line in enumerate(metrics)]
    kept = [(step, value) for step, value in pairs if _finite(step) and _finite(value)]
    table = np.array(kept, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def running_mean(values: Array) -> Array:
    """Centred mean over a share of the series; shorter windows at both ends.

    In long series the rarest extremes are cut off first: one slow update must not look like many.
    """
    if len(values) >= CUTTING_LENGTH:
        values = np.clip(values, *np.percentile(values, RAREST))
    reach = int(len(values) * SMOOTHING_SHARE / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def line_chart(title: str, steps: Array, values: Array, smooth: Array) -> Markup:
    """One <svg>: the values faint, their smooth line on top; "" where nothing is."""
    if not len(values):
        return Markup()
    across = _Axis.of_steps(steps)
    up = _Axis.of_values(values, smooth)
    lines = []
    if len(values) > 1:
        picked = np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).astype(int))
        lines = [
            ("raw", _points(*_thin(steps, values), across, up)),
            ("mean", _points(steps[picked], smooth[picked], across, up)),
        ]
    decimals = None if up.logarithmic else _tick_decimals(up.ticks)
    template = html_templates(Path(__file__).parent / "templates").get_template("chart.svg")
    drawing = template.render(
        label=f"{title}: {readable_number(smooth[0])} at update {steps[0]:.0f}, "
        f"{readable_number(smooth[-1])} at update {steps[-1]:.0f}",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        base=HEIGHT - BOTTOM,
        logarithmic=up.logarithmic,
        rows=[(y, _tick_text(tick, decimals)) for y, tick in up.placed_ticks()],
        steps=[(x, f"{tick:,.0f}") for x, tick in across.placed_ticks()],
        lines=lines,
        end=_points(steps[-1:], smooth[-1:], across, up)[0],
    )
    return Markup(drawing)


def readable(key: str) -> str:
    """A metric's name as words."""
    return key.replace("_", " ").strip().capitalize()


def readable_number(value: float) -> str:
    """Three significant digits, with a true minus sign and thousands separated."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return text.replace("-", "\N{MINUS SIGN}")


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [index * step for index in range(first, last + 1)]
    return [low, high]


@dataclass(frozen=True)
class _Axis:
    """Places numbers between two ends of the drawing and knows its ticks."""

    low: float
    high: float
    ends: tuple[float, float]
    ticks: tuple[float, ...]
    logarithmic: bool = False

    @classmethod
    def of_steps(cls, steps: Array) -> _Axis:
        """The horizontal axis, from the first to the last update."""
        low, high = float(steps.min()), float(steps.max())
        ticks = [tick for tick in nice_ticks(low, high) if tick == round(tick)]
        ends = (LEFT, WIDTH - RIGHT)
        if low == high:
            low, high, ticks = low - 1, high + 1, [low]
        return cls(low, high, ends, tuple(ticks))

    @classmethod
    def of_values(cls, values: Array, smooth: Array) -> _Axis:
        """The vertical axis: all of the running mean, and the raw values but the rarest ones."""
        raw_low, raw_high = np.percentile(values, RAREST)
        low, high = min(float(raw_low), smooth.min()), max(float(raw_high), smooth.max())
        ends = (HEIGHT - BOTTOM, TOP)
        if low > 0 and high / low > LOGARITHMIC_SPAN:
            return cls(low, high, ends, tuple(_decades(low, high)), logarithmic=True)
        if low > 0 and low < 0.5 * high:
            low = 0.0
        if high - low <= 1e-9 * max(abs(high), abs(low)):  # constant: put it in the middle
            room = 0.5 * abs(high) or 1.0
            low, high = low - room, high + room
        pad = 0.04 * (high - low)
        low, high = low if low == 0 else low - pad, high + pad
        return cls(low, high, ends, tuple(nice_ticks(low, high)))

    def place(self, numbers: Array) -> Array:
        """Coordinates of the numbers; what lies outside is put on the edge."""
        inside = np.clip(numbers, self.low, self.high)
        low, high = self.low, self.high
        if self.logarithmic:
            inside, low, high = np.log(inside), math.log(low), math.log(high)
        start, end = self.ends
        return start + (inside - low) / (high - low) * (end - start)

    def placed_ticks(self) -> list[tuple[float, float]]:
        """(coordinate, number) of each tick."""
        places = self.place(np.array(self.ticks, dtype=float))
        return list(zip(places, self.ticks, strict=True))


def _decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5 or 1, 3 times powers of ten, or some powers alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**power for power in powers for f in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= MOST_TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / MOST_TICKS)]


def _tick_decimals(ticks: Sequence[float]) -> int | None:
    """Decimals that tell neighbouring ticks apart; None where numbers are too small or large."""
    size = max((abs(tick) for tick in ticks), default=0.0)
    step = min((abs(b - a) for a, b in itertools.pairwise(ticks)), default=size)
    if not step or not 1e-3 <= size < 1e5 or step < 1e-4:
        return None
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _tick_text(tick: float, decimals: int | None) -> str:
    if decimals is None:
        return f"{tick:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "\N{MINUS SIGN}")
    return f"{tick:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _thin(steps: Array, values: Array) -> tuple[Array, Array]:
    """At most `MOST_POINTS` points that keep every bin's lowest and highest value."""
    if len(values) <= MOST_POINTS:
        return steps, values
    edges = np.linspace(0, len(values), MOST_POINTS // 2 + 1).astype(int)
    kept: set[int] = set()
    for first, last in itertools.pairwise(edges):
        part = values[first:last]
        kept |= {int(first + part.argmin()), int(first + part.argmax())}
    index = np.array(sorted(kept))
    return steps[index], values[index]


def _points(
    steps: Array, values: Array, across: _Axis, up: _Axis
) -> list[tuple[np.float64, np.float64]]:
    """Coordinates (x, y) in the drawing."""
    return list(zip(across.place(steps), up.place(values), strict=True))


def _finite(value: object) -> bool:
    return finite(value) is not None

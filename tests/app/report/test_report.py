"""The report: one file, offline, escaped, and its numbers are those of report.json."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from dpdmd_studio.app.report import table
from dpdmd_studio.app.report.charts import (
    known_curves,
    line_chart,
    nice_ticks,
    readable_number,
    running_mean,
    series,
)
from dpdmd_studio.app.report.data import Arm, ReportData
from dpdmd_studio.app.report.images import embedded_side
from dpdmd_studio.app.report.report import sheet_names, write_report
from dpdmd_studio.app.report.table import verdict
from dpdmd_studio.core.errors import OutputError
from PIL import Image

HOSTILE = "<script>alert(\"x\")</script> & <img src=https://example.org/a.png> 'q'"
LABELS = {"valid": ("Valid", "Share of valid samples."), "diversity": ("Diversity", "Spread.")}
VOID = {"meta", "img", "br", "link"}


class Elements(HTMLParser):
    """All elements with their attributes, the text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def images(prompts: int, seeds: int, side: int, start: int = 0) -> list[list[np.ndarray]]:
    """Images that all differ: their own number is their colour."""
    grid = []
    for p in range(prompts):
        numbers = [start + p * seeds + s for s in range(seeds)]
        grid.append([np.full((side, side, 3), (n, 255 - n, 90), np.uint8) for n in numbers])
    return grid


def report_data(prompts: int = 2, seeds: int = 3, side: int = 16, **changes) -> ReportData:
    count = prompts * seeds
    arms = [
        Arm(name="Teacher", note="As it is.", evaluations=60, seconds_per_image=0.25,
            images=images(prompts, seeds, side), measures={"valid": 0.985, "diversity": 0.93}),
        Arm(name="Bare", note="", evaluations=4, seconds_per_image=0.02,
            images=images(prompts, seeds, side, count), measures={"valid": 0.2}),
        Arm(name="Student", note="", evaluations=4, seconds_per_image=0.021,
            images=images(prompts, seeds, side, 2 * count),
            measures={"valid": 1 / 3, "diversity": math.nan, "extra": 0.5}),
    ]  # fmt: skip
    values = {
        "title": "A run",
        "subtitle": "Of a test",
        "facts": {"Device": "cpu", "Sample it with": "Euler, 4 steps"},
        "prompts": [f"prompt {index}" for index in range(prompts)],
        "seeds": list(range(7, 7 + seeds)),
        "arms": arms,
        "metrics": [{"step": s, "fake_loss": 1.0 / s, "seconds": 0.5} for s in range(1, 9)],
        "measure_labels": LABELS,
        "lora": "a.safetensors",
    }
    return ReportData(**(values | changes))


def written(folder, data) -> str:
    return write_report(folder, data).read_text(encoding="utf-8")


def test_every_text_of_the_user_is_escaped(tmp_path):
    first = report_data()
    arms = [dataclasses.replace(arm, name=HOSTILE, note=HOSTILE) for arm in first.arms]
    data = dataclasses.replace(
        first,
        title=HOSTILE,
        subtitle=HOSTILE,
        prompts=[HOSTILE, "plain"],
        facts={HOSTILE: HOSTILE, "Checkpoint": HOSTILE, "Sample it with": HOSTILE},
        arms=arms,
        measure_labels={"valid": (HOSTILE, HOSTILE)},
        measure_units={"valid": HOSTILE},
        notes=[HOSTILE],
        lora=HOSTILE,
        metrics=[{"step": 1, HOSTILE: 1.0}],
    )
    page = Elements(written(tmp_path, data))
    assert page.all("script") == []
    assert len(page.all("img")) == 3 * 2 * 3
    assert "".join(page.words).count('<script>alert("x")</script>') > 10


@pytest.mark.parametrize(("side", "count"), [(16, 3), (300, 2)])
def test_the_page_is_one_file_that_asks_for_nothing(tmp_path, side, count):
    text = written(tmp_path, report_data(seeds=count, side=side))
    page = Elements(text)
    names = {name for name, _ in page.found}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "http://" not in text and "https://" not in text
    assert "url(" not in text and "@import" not in text
    for _, attributes in page.found:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    policy = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_picture_is_embedded_once_and_small_ones_exactly(tmp_path):
    data = report_data()
    found = Counter()
    for image in Elements(written(tmp_path, data)).all("img"):
        assert image["alt"] and image["class"] == "crisp"
        content = base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
        found[np.asarray(Image.open(io.BytesIO(content))).tobytes()] += 1
    expected = Counter(p.tobytes() for arm in data.arms for row in arm.images for p in row)
    assert found == expected


def test_large_images_shrink_and_the_page_stays_small(tmp_path):
    page = Elements(written(tmp_path, report_data(prompts=1, side=1024)))
    for image in page.all("img"):
        assert (image["width"], image["height"]) == ("256", "256")
        assert "class" not in image
    assert embedded_side(6 * 12 * 16) ** 2 * 6 * 12 * 16 <= 20_000_000


def test_the_tables_numbers_are_those_of_the_json_file(tmp_path):
    text = written(tmp_path, report_data())
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    bodies = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert len(bodies) == 2  # labelled measures, and the others, folded
    for row, arm in zip(re.findall("<tr.*?</tr>", bodies[0], re.DOTALL), numbers["arms"],
                        strict=True):  # fmt: skip
        cells = re.findall(r"<td.*?</td>", row, re.DOTALL)
        expected = [arm["evaluations"], arm["seconds_per_picture"]]
        expected += [arm["measures"].get(key) for key in LABELS]
        for cell, value in zip(cells, expected, strict=True):
            exact = re.search(r'<data value="([^"]+)"', cell)
            assert (json.loads(exact[1]) if exact else None) == value
            assert ("not measured" in cell) == (value is None)
    assert "\N{MINUS SIGN}65.2 points" in bodies[0]  # 1/3 against .985


def test_a_sheet_of_each_arm_lies_beside_the_page(tmp_path):
    write_report(tmp_path, report_data())
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    sheets = {arm["sheet"] for arm in numbers["arms"]}
    assert sheets == {"grid-teacher.png", "grid-bare.png", "grid-student.png"}
    assert {path.name for path in tmp_path.iterdir()} == sheets | {"report.html", "report.json"}
    assert sheet_names(["Ä", "A b", "a-B", "a b"]) == [
        "grid-arm.png", "grid-a-b.png", "grid-a-b-no2.png", "grid-a-b-no3.png",
    ]  # fmt: skip


def test_numbers_that_are_not_finite_never_reach_page_or_json(tmp_path):
    arms = [Arm(name="Only", note="", evaluations=4, seconds_per_image=math.inf,
                images=images(1, 1, 8), measures={"valid": math.nan})]  # fmt: skip
    metrics = [{"step": 1, "fake_loss": math.nan}, {"step": 2, "fake_loss": math.inf}]
    text = written(tmp_path, report_data(1, 1, arms=arms, metrics=metrics))
    assert re.search(r"\b(nan|inf)\b", text, re.IGNORECASE) is None
    assert "not measured" in text
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_light_dark_headers_and_landmarks_are_there(tmp_path):
    text = written(tmp_path, report_data())
    assert "prefers-color-scheme:dark" in text and "color-scheme:light dark" in text
    page = Elements(text)
    assert len(page.all("main")) == len(page.all("h1")) == 1
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert all(drawing["aria-label"] for drawing in page.all("svg"))


@pytest.mark.parametrize(("prompts", "seeds"), [(1, 1), (1, 3), (12, 16)])
def test_few_and_many_images_make_a_page(tmp_path, prompts, seeds):
    arms = [Arm(name=f"Arm {i}", note="", evaluations=4, seconds_per_image=1.0,
                images=[[np.zeros((8, 8, 3), np.uint8)] * seeds] * prompts)
            for i in range(5 if seeds > 3 else 1)]  # fmt: skip
    data = report_data(prompts, seeds, arms=arms, metrics=[], measure_labels={}, facts={}, lora="")
    text = written(tmp_path, data)
    assert "No updates were recorded." in text
    assert len(Elements(text).all("img")) == len(arms) * prompts * seeds


def test_the_verdict_names_the_measure_furthest_below():
    data = report_data()
    changed = dataclasses.replace(data.arms[2], measures={"valid": 0.975, "diversity": 0.90})
    text = verdict(report_data(arms=[*data.arms[:2], changed]))
    times = "\N{MULTIPLICATION SIGN}"
    assert f"15{times} fewer network evaluations and 12{times} faster" in text
    assert "largest loss against the teacher: 3.0 points, in diversity" in text


def test_images_that_do_not_fit_the_prompts_are_refused():
    with pytest.raises(ValueError, match="1 prompts x 3 seeds"):
        report_data(prompts=1, arms=report_data(prompts=2).arms)


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be made"):
        write_report(tmp_path / "file", report_data())


@pytest.mark.parametrize(
    "values",
    [[2.0], [3.0, 3.0, 3.0], [0.0, 0.0], [1e-9, 1.0, 1e9], [-1.0, 1.0], list(range(5000))],
    ids=["one", "constant", "zeros", "huge-span", "signs", "long"],
)
def test_a_chart_is_well_formed_and_stays_inside_its_frame(values):
    array = np.array(values, dtype=float)
    drawing = line_chart("T", np.arange(1.0, len(array) + 1), array, running_mean(array))
    root = ElementTree.fromstring(drawing)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for path in root.iter("path"):
        if path.attrib["class"] in ("raw", "mean"):
            points = np.array(re.findall(r"[\d.]+", path.attrib["d"]), float).reshape(-1, 2)
            assert (points >= 0).all() and (points <= [width, height]).all()
            assert len(points) <= 300
    assert len(list(root.iter("text"))) >= 2
    assert root.find("circle") is not None


def test_an_empty_chart_says_so(tmp_path):
    empty = np.array([])
    assert line_chart("T", empty, empty, empty) == ""
    text = written(tmp_path, report_data(metrics=[{"step": 1, "fake_loss": math.nan}]))
    assert '<p class="missing">not measured</p>' in text and "<svg" not in text


def test_series_leave_out_what_is_not_a_number():
    lines = [{"step": 1, "a": 1.0}, {"step": 2}, {"step": 3, "a": math.nan}, {"step": 4, "a": 2.0}]
    steps, values = series(lines, "a")
    assert steps.tolist() == [1, 4] and values.tolist() == [1.0, 2.0]
    assert [curve.key for curve in known_curves([{"step": 1, "zeta": 1, "fake_loss": 1}])] == [
        "fake_loss", "zeta",
    ]  # fmt: skip


def test_the_running_mean_keeps_straight_lines_and_ignores_one_spike():
    line = np.linspace(0.0, 1.0, 50)
    np.testing.assert_allclose(running_mean(line)[5:-5], line[5:-5], atol=1e-12)
    spiked = np.ones(200)
    spiked[0] = 1000.0
    np.testing.assert_allclose(running_mean(spiked), 1.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 300.0), (-2.5, 0.1), (3.1, 3.2)])
def test_ticks_are_round_few_and_inside(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 5
    assert low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (0.0201, "0.0201"), (-12.34, "\N{MINUS SIGN}12.3"),
     (1234.0, "1,234"), (1e-4, "1e\N{MINUS SIGN}4"), (2.5e7, "2.5e7")],
)  # fmt: skip
def test_numbers_are_readable(value, text):
    assert readable_number(value) == text


@pytest.mark.parametrize(
    ("change", "unit", "shown"),
    [
        (-0.0123, "", "\N{MINUS SIGN}0.0123"),
        (0.0123, "nats", "+0.0123 nats"),
        (-0.0006, "share", "\N{MINUS SIGN}0.1 points"),
        (-0.0004, "share", "0.0 points"),
        (0.0004, "share", "0.0 points"),
        (math.nan, "share", ""),
    ],
)
def test_small_differences_keep_their_sign(change, unit, shown):
    assert table._difference(change, unit) == shown

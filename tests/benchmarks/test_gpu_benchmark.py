"""The measurements for a GPU run on a CPU with tiny networks, and go on where they stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
TINY = ["--tiny", "--device", "cpu", "--dtype", "float32", "--repeats", "1"]


@pytest.fixture
def programs(monkeypatch):
    """run.py and table.py as modules."""
    monkeypatch.syspath_prepend(str(GPU.parent))
    monkeypatch.syspath_prepend(str(GPU))
    import run
    import table

    yield run, table
    for name in (
        "run",
        "table",
        "layouts",
        "measuring",
        "update_parts",
        "kernel_parts",
        "compiling",
    ):
        sys.modules.pop(name, None)


def rows(folder: Path, part: str) -> dict:
    return json.loads((folder / f"{part}.json").read_text())["rows"]


@pytest.mark.parametrize(
    ("part", "only", "keys"),
    [
        ("caps", "sd1", {"updates", "allocated"}),
        ("copies-sd3", "sd3, fast", {"seconds", "allocated"}),
        ("copies-sdxl", "sdxl, three copies, ch", {"seconds", "allocated"}),
        ("memory-sd1", "768, checkpointing", {"seconds", "allocated"}),
        ("profile", "sd1, shared roll-outs, ch", {"seconds", "kernel_share", "top"}),
        ("attention", "inner, SDPA math", {"seconds"}),
        ("attention", "whole update, sdpa", {"seconds", "said"}),
        ("scaling", "N 2", {"seconds"}),
        ("speed", "sd1, channels last", {"seconds"}),
    ],
)
def test_a_case_of_every_part_gives_its_row(part, only, keys, programs, tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--part", part, "--only", only]
    assert programs[0].main([*TINY, *arguments]) == 0
    found = rows(tmp_path, part)
    assert found and all(keys <= row.keys() for row in found.values()), found


def test_the_count_of_the_estimate_is_held_against_the_measured(programs, tmp_path):
    only = ["--part", "estimate", "--only", "sd3, as set"]
    assert programs[0].main([*TINY, "--output", str(tmp_path), *only]) == 0
    (row,) = rows(tmp_path, "estimate").values()
    assert row["counted_share"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_teacher_and_fake_in_one_pass_predict_the_same(name, programs, tmp_path):
    only = ["--part", "speed", "--only", f"{name}, teacher and fake"]
    assert programs[0].main([*TINY, "--output", str(tmp_path), *only]) == 0
    (row,) = rows(tmp_path, "speed").values()
    assert row["difference"] < 1e-5


def test_what_cannot_be_measured_says_why(programs, tmp_path):
    only = ["--part", "speed", "--only", "sd1, guided teacher call in a CUDA graph"]
    assert programs[0].main([*TINY, "--output", str(tmp_path), *only]) == 0
    (row,) = rows(tmp_path, "speed").values()
    assert row == {"skipped": "A CUDA graph needs a CUDA device; this is cpu"}


def test_a_budget_that_is_used_up_leaves_the_rest_for_the_next_call(programs, tmp_path):
    run = programs[0]
    part = [*TINY, "--output", str(tmp_path), "--part", "attention", "--only", "512, cross, SDPA m"]
    assert run.main([*part, "--budget", "-1"]) == 3
    assert not (tmp_path / "attention.json").exists()
    assert run.main(part) == 0
    before = (tmp_path / "attention.json").read_text()
    assert run.main(part) == 0
    assert (tmp_path / "attention.json").read_text() == before


def test_a_cap_is_felt(programs):
    import torch
    from measuring import Options, capped

    with pytest.raises(torch.OutOfMemoryError), capped(1000, [], Options("cpu", "float32", True)):
        torch.zeros(1000)


def test_the_page_sets_bars_beside_what_was_measured(programs, tmp_path):
    table = programs[1]
    environment = {"device": "a card", "torch": "2.13"}

    def write(part: str, found: dict) -> None:
        content = {"environment": environment, "command": "run", "rows": found}
        (tmp_path / f"{part}.json").write_text(json.dumps(content))

    write("copies-sdxl", {
        "sdxl, three copies": {"seconds": 10.0}, "sdxl, shared roll-outs": {"seconds": 5.9},
        "sdxl, fast": {"seconds": 4.6}, "sdxl, separate roll-outs": {"out_of_memory": "no"},
    })  # fmt: skip
    write("memory-sdxl", {"sdxl, 1024, checkpointing": {"reserved": 10.9 * 2**30}})
    text = table.page(table.read(tmp_path))
    assert "| sdxl, shared roll-outs: time / three copies | 0.59 | <= 0.6 | met |" in text
    assert "| sdxl, fast: time / three copies | 0.46 | <= 0.45 | missed |" in text
    assert "| sdxl, separate roll-outs: time / three copies | not measured |" in text
    assert "checkpointing: peak reserved GiB | 10.9 | <= 11 | met |" in text
    assert "out of memory: no" in text


def test_time_in_kernels_counts_overlaps_once(programs):
    from kernel_parts import covered

    assert covered([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4

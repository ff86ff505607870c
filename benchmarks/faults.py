"""Plants faults at every stage of a run: does it finish, or stop with its work kept and one line?

Each cell of the table is a run on a tiny random checkpoint in a process of its own, and a second
process that goes on with it undisturbed: the LoRA must be, to the byte, that of a run which met no
fault. Processes are forked, so that the libraries are loaded once: not on Windows.

    python benchmarks/faults.py --markdown benchmarks/results/faults.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import mounting

sys.path.append(str(mounting.ROOT / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
CANNOT = "cannot happen"


@dataclass(frozen=True)
class Cell:
    """What a run did that met a fault at a stage.

    Attributes:
        did: finishes, stops, is killed, or cannot happen.
        said: the line that it stopped with, or what it said beside the usual.
        wrong: what should not be; "" for nothing.
    """

    stage: str
    fault: str
    did: str
    said: str
    wrong: str = ""


def main() -> int:
    """Exit status: 0 if every cell is as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", default="", help="those alone whose names hold this")
    parser.add_argument("--fault", default="", help="those alone whose names hold this")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    import faulting

    began, cells = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        for stage in faulting.STAGES:
            for fault in faulting.FAULTS:
                if options.stage in stage and options.fault in fault:
                    cells.append(bench.cell(stage, fault))
                    print(" | ".join(asdict(cells[-1]).values()), flush=True)
    wrong = [cell for cell in cells if cell.wrong]
    print(f"{len(cells)} cells, {len(wrong)} wrong, {time.monotonic() - began:.0f} s")
    if options.markdown:
        options.markdown.write_text(_page(cells), encoding="utf-8")
    return int(bool(wrong))


class Bench:
    """A folder with a checkpoint, and a run that nothing disturbed."""

    def __init__(self, folder: Path) -> None:
        import faulting
        import pytest
        import torch

        torch.set_num_threads(1)
        faulting.quick_and_alike(pytest.MonkeyPatch())
        self.folder, self.count = folder, 0
        self.checkpoint = faulting.new_checkpoint(folder)
        run, ended = self._new_run("undisturbed"), None
        ended = self._go_on(run, lambda: None)
        assert ended.code == 0, ended
        self.lora = faulting.lora_of(run)
        self.usual = {self._tidy(line, run) for line in ended.said}
        assert self.lora

    def cell(self, stage: str, fault: str) -> Cell:
        """A run that meets the fault at the stage, and goes on afterwards without it."""
        import faulting
        import pytest

        reason = faulting.STAGES[stage].cannot.get(fault)
        if reason:
            return Cell(stage, fault, CANNOT, reason)
        self.count += 1
        run = self._new_run(f"{self.count:03d}")
        if faulting.STAGES[stage].begun:
            self._in_child(lambda: faulting.distil_to_two(run))
        planted = lambda: faulting.plant(stage, fault, pytest.MonkeyPatch(), self.folder, _die)  # noqa: E731
        ended = self._go_on(run, planted)
        did, wrong = faulting.verdict(stage, fault, ended, run, self.lora)
        lines = [ended.error.removeprefix("error: ")] if ended.error else ended.said
        told = dict.fromkeys(self._tidy(line, run) for line in lines)
        said = " ".join(line for line in told if line not in self.usual)
        if not wrong and did != "finishes":
            again = self._go_on(run, lambda: None)
            taken = (run.path / "memory.json").exists()  # the fallbacks that the run took
            if again.code:
                wrong = f"resumed, it ends with {again.error!r}"
            elif faulting.lora_of(run) != self.lora and not taken:
                wrong = "resumed, it makes another LoRA"
            did += ", resumes to another LoRA by its fallbacks" if taken else ", resumes exactly"
        return Cell(stage, fault, did, said, wrong)

    def _tidy(self, text: str, run) -> str:
        """A line without the folders of this very run, fit for a table."""
        places = {run.path: "RUN", run.path.parents[1]: "HERE", self.folder: "FOLDER"}
        for place, name in places.items():
            text = text.replace(str(place), name)
        return " ".join(text.replace("|", "/").split())

    def _new_run(self, name: str):
        import faulting

        place = self.folder / name
        os.environ["DPDMD_HOME"] = str(place / "home")
        made = self._in_child(lambda: str(faulting.new_run(place / "made", self.checkpoint).path))
        return faulting.RunDirectory.open(Path(made))

    def _go_on(self, run, planted: Callable[[], object]):
        import faulting

        def work() -> dict:
            planter = planted()
            return asdict(faulting.go_on(run)) | {"reached": getattr(planter, "reached", 1)}

        found = self._in_child(work)
        return faulting.Ended(**found) if found else faulting.Ended(-9)

    def _in_child(self, work: Callable[[], object]):
        """What work says in a process of its own; None if that was killed."""
        place = self.folder / "said.json"
        place.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                number = os.open(place, os.O_CREAT | os.O_WRONLY)  # a full disk is planted in open
                text = json.dumps(work())
                os.write(number, text.encode())
                code = 0
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            return None
        assert os.WEXITSTATUS(status) == 0, "the work itself failed"
        return json.loads(place.read_text())


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _page(cells: list[Cell]) -> str:
    """The table, and below it what each cell said."""
    import torch

    stages = list(dict.fromkeys(cell.stage for cell in cells))
    faults = list(dict.fromkeys(cell.fault for cell in cells))
    by_place = {(cell.stage, cell.fault): cell for cell in cells}
    wrong = sum(bool(cell.wrong) for cell in cells)
    cannot = sum(cell.did == CANNOT for cell in cells)
    lines = [
        "# Faults at every stage of a run",
        "",
        f"`python benchmarks/faults.py --markdown benchmarks/results/faults.md`, "
        f"{time.strftime('%Y-%m-%d')}, CPU, torch {torch.__version__}, Python "
        f"{platform.python_version()}. A run of four updates on the tiny random SD3.5 of the "
        "tests, with measurements, previews and a report, meets one fault; then a second process "
        "goes on with it. *Exactly*: the LoRA is to the byte that of a run which met none.",
        "",
        f"{len(cells) - cannot} cells, {cannot} that cannot happen, {wrong} wrong. Devices' lack "
        "of memory, the full disk and the unreadable file are played, the kill is SIGKILL; a part "
        "that crashes ends the process just so.",
        "",
        f"| | {' | '.join(faults)} |",
        "|---" * (len(faults) + 1) + "|",
    ]
    for stage in stages:
        did = [_short(by_place[stage, fault]) for fault in faults if (stage, fault) in by_place]
        lines.append(f"| {stage} | {' | '.join(did)} |")
    lines += ["", "## What it said", ""]
    for stage in stages:
        lines += [f"### {stage[0].upper()}{stage[1:]}", ""]
        lines += [
            f"- {cell.fault}: {cell.did}. {cell.said}".rstrip() + cell.wrong
            for cell in cells
            if cell.stage == stage
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _short(cell: Cell) -> str:
    if cell.did == CANNOT:
        return f"({cell.said})"
    return f"WRONG: {cell.wrong}" if cell.wrong else cell.did


if __name__ == "__main__":
    sys.exit(main())

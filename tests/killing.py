"""Kills of worker, job and front-end processes at random moments while the queue is changed.

Shared by a test (few kills) and by a benchmark (many).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpdmd_studio.app import jobs
from dpdmd_studio.app.library.home import home
from dpdmd_studio.app.runs.lock import live_owner
from dpdmd_studio.app.runs.process_identity import live_process
from dpdmd_studio.core.errors import DPDMDError, RunError
from dpdmd_studio.core.lora.file import read_lora

ROOT = Path(__file__).resolve().parents[1]
MARKS = {"worker": "worker.lock", "job": "child.json"}
CHOICES = (("worker",), ("job",), ("worker", "job"), ("front end",))

# Another front end: it knows nothing of the first one and changes what it finds.
MEDDLER = """
import importlib.util, random, sys, time
root, seed, until = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
spec = importlib.util.spec_from_file_location("dpdmd_studio", root + "/__init__.py")
sys.modules["dpdmd_studio"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from dpdmd_studio.core.errors import RunError
from dpdmd_studio.app import jobs
rng, count = random.Random(seed), 0
while time.time() < until:
    time.sleep(rng.uniform(0.02, 0.2))
    queued = [job.id for job in jobs.all_jobs() if job.state == "queued"]
    others = [job.id for job in jobs.all_jobs() if job.state in ("stopped", "interrupted")]
    try:
        if queued and rng.random() < 0.8:
            jobs.move(rng.choice(queued), rng.randrange(4))
        elif others:
            jobs.start(rng.choice(others))
        jobs.ensure_worker()
    except RunError:
        pass  # not where it was a moment ago
"""


@dataclass
class Report:
    """What became of everything.

    Attributes:
        kills: (what was killed, state of the job at hand) of each kill.
        lost: ids that are no longer there.
        stuck: ids that count as live although no process has to do with them.
        unreadable: LoRA files that do not load.
        loras: how many were read.
        unfinished: title, state and message of jobs that did not finish when started again.
        seconds: of the whole.
    """

    kills: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    loras: int = 0
    unfinished: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, stuck, damaged, or left undone."""
        return not (self.lost or self.stuck or self.unreadable or self.unfinished)


class FrontEnd:
    """The other front end; one that was killed is followed by a new one."""

    def __init__(self, seed: int, until: float) -> None:
        self._seed, self._until = seed, until
        self._start()

    def _start(self) -> None:
        words = [sys.executable, "-c", MEDDLER, str(ROOT), str(self._seed), str(self._until)]
        self._process = subprocess.Popen(words)

    def kill(self) -> None:
        """End it at once, whatever it is doing; it must not have failed by itself before."""
        assert self._process.poll() in (None, 0), "the other front end has failed"
        self._process.kill()
        self._process.wait()

    def replace(self) -> None:
        """Kill it and start another."""
        self.kill()
        self._seed += 1
        self._start()


def kill_at_random(
    ids: Sequence[str],
    folder: Path,
    *,
    kills: int,
    seed: int,
    pause: tuple[float, float],
    patience: float,
) -> Report:
    """Kill `kills` times with random pauses, then let all jobs finish, and say what was found.

    Args:
        ids: queued jobs, the first one a distillation; copies of it follow when all are done early.
        folder: where they write their LoRAs.
        pause: least and most seconds before a kill.
        patience: seconds within which the jobs must finish after the last kill.
    """
    began, report, rng = time.time(), Report(), random.Random(seed)
    ids, longest = list(ids), 2 * kills * (pause[1] + 2.0)
    other = FrontEnd(seed, began + longest)
    try:
        while len(report.kills) < kills:
            _keep_busy(ids)
            time.sleep(rng.uniform(*pause))
            _kill_one(rng, report, other)
            _check(ids, folder, report)
    finally:
        other.kill()
    _finish(ids, report, patience)
    _check(ids, folder, report)
    report.seconds = time.time() - began
    return report


def _keep_busy(ids: list[str]) -> None:
    """Let something wait or run: what was interrupted, or a copy of the first."""
    states = {id: jobs.get_job(id).state for id in ids}
    idle = [id for id, state in states.items() if state in ("interrupted", "stopped", "failed")]
    if all(state == "finished" for state in states.values()):
        ids.append(jobs.duplicate(ids[0]).id)
        idle = ids[-1:]
    if idle and not any(state == "queued" or state in jobs.LIVE for state in states.values()):
        with contextlib.suppress(RunError):  # the other front end was quicker
            jobs.start(idle[0])


def _kill_one(rng: random.Random, report: Report, other: FrontEnd) -> None:
    """Kill one of CHOICES, if the worker or a job's process lives or soon does."""
    jobs.ensure_worker()
    deadline = time.monotonic() + 30
    while not (found := _processes()):
        if time.monotonic() > deadline or not any(
            j.live or j.place is not None for j in jobs.all_jobs()
        ):
            return
        time.sleep(0.02)
    state = next((job.state for job in jobs.all_jobs() if job.live), "none")
    chosen = rng.choice(CHOICES)
    if chosen == ("front end",):
        other.replace()
        report.kills.append((chosen[0], state))
        return
    names = [name for name in chosen if name in found] or list(found)[:1]
    for name in names:
        with contextlib.suppress(ProcessLookupError):  # ended by itself at this moment
            os.kill(found[name], signal.SIGKILL)
    report.kills.append((" and ".join(names), state))


def _processes() -> dict[str, int]:
    """Numbers of the worker and of the job's process, if they live."""
    found = {}
    for name, mark in MARKS.items():
        places = [home() / mark] if name == "worker" else list((home() / "runs").glob(f"*/{mark}"))
        for place in places:
            owner = live_owner(place) if name == "worker" else live_process(place)
            if owner is not None and owner.pid > 0:
                found[name] = owner.pid
    return found


def _check(ids: Sequence[str], folder: Path, report: Report) -> None:
    """What must hold at every moment."""
    there = {job.id: job for job in jobs.all_jobs()}
    report.lost += [id for id in ids if id not in there]
    locks = ("taken.json", "lock.json")
    for id, job in there.items():
        alone = not any(live_owner(job.path / lock) for lock in locks)
        alone = alone and live_process(job.path / MARKS["job"]) is None
        if job.live and alone and jobs.get_job(id).live:
            report.stuck.append(f"{id}: {job.state}")
    places = [*folder.glob("*.safetensors"), *(home() / "runs").glob("*/checkpoints/*.safetensors")]
    for path in places:
        try:
            read_lora(path)
            report.loras += 1
        except FileNotFoundError:
            pass  # an old one, removed at this moment
        except DPDMDError as error:
            if path.exists():
                report.unreadable.append(f"{path.name}: {error}")


def _finish(ids: Sequence[str], report: Report, patience: float) -> None:
    """Start what was interrupted until all are finished, as a person would."""
    deadline, tried = time.monotonic() + patience, Counter()
    while time.monotonic() < deadline:
        found = [jobs.get_job(id) for id in ids]
        if all(job.state == "finished" for job in found):
            return
        for job in found:
            if job.state in ("interrupted", "stopped", "failed") and tried[job.id] < 5:
                tried[job.id] += 1
                with contextlib.suppress(RunError):
                    jobs.start(job.id)
        jobs.ensure_worker()
        time.sleep(0.1)
    for job in (jobs.get_job(id) for id in ids):
        if job.state != "finished":
            report.unfinished.append(f"{job.title} ({job.state}): {job.message}")

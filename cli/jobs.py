"""The commands of the queue: `runs`, `work`, and `distill --queue`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..app import jobs
from ..app.config.request import DistillRequest
from ..app.library.home import home
from ..core.errors import SettingsError

ACTIONS = {
    "list": "show all runs and the queue (default)",
    "start": "put a run into the queue; it goes on where it was",
    "stop": "take a run out of the queue, or stop it and keep what there is",
    "move": "give a queued run another place",
    "duplicate": "make a new run with the same settings and prompts",
    "rename": "give a run another title",
    "delete": "move a run into the trash",
    "restore": "take a run back out of the trash",
    "log": "show the end of a run's log",
}


def add_job_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands `runs`, with an action each, and `work`."""
    work = commands.add_parser("work", help="run queued jobs until none are left")
    work.set_defaults(run_command=lambda arguments: jobs.work())
    parser = commands.add_parser("runs", help="show and change the runs and their queue")
    parser.set_defaults(run_command=run_runs, action="list")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action")
    for name, text in ACTIONS.items():
        action = actions.add_parser(name, help=text)
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                            help="print the result as JSON")  # fmt: skip
        if name != "list":
            action.add_argument("id", metavar="RUN", help="its name, as `runs list` shows it")
        if name == "move":
            action.add_argument("place", type=int, metavar="PLACE", help="1 runs next")
        if name in ("duplicate", "rename"):
            needed = None if name == "rename" else "?"
            action.add_argument("title", metavar="TITLE", nargs=needed, default="")
        if name == "log":
            action.add_argument("--lines", type=int, default=40, metavar="N")


def add_queue_option(parser: argparse.ArgumentParser) -> None:
    """`distill --queue`."""
    parser.add_argument("--queue", action="store_true",
                        help="do not train here: add the run to the queue")  # fmt: skip


def queue_distill(
    arguments: argparse.Namespace, request: DistillRequest, prompts: Sequence[str]
) -> int:
    """Queue what `distill` was asked for, and say where it is; returns the exit code."""
    if arguments.run:
        raise SettingsError(
            f"--queue keeps its runs in {home() / 'runs'}; --run {arguments.run} names another "
            "folder. Leave out one of the two."
        )
    job = jobs.submit_distill(request, prompts, Path(request.output).stem)
    _print(job, arguments.json, f"Queued: {job.id}")
    return 0


def run_runs(arguments: argparse.Namespace) -> int:
    """Do one action with the runs and print what came of it; returns the exit code."""
    name = arguments.action or "list"
    if name == "list":
        found = jobs.all_jobs()
        text = _table(found) if found else f"There are no runs in {home() / 'runs'}."
        _write([_facts(job) for job in found], arguments.json, text)
    elif name == "log":
        text = jobs.log_tail(arguments.id, arguments.lines)
        _write({"log": text}, arguments.json, text)
    elif name == "delete":
        place = jobs.delete(arguments.id)
        text = f"Moved to {place}. `runs restore {place.name}` takes it back."
        _write({"trash": str(place)}, arguments.json, text)
    else:
        job = _act(name, arguments)
        _print(job, arguments.json, f"{job.id}: {_state(job)}")
    return 0


def _act(name: str, arguments: argparse.Namespace) -> jobs.Job:
    if name == "move":
        jobs.move(arguments.id, arguments.place - 1)
        return jobs.get_job(arguments.id)
    if name == "duplicate":
        return jobs.duplicate(arguments.id, arguments.title)
    if name == "rename":
        return jobs.rename(arguments.id, arguments.title)
    return {"start": jobs.start, "stop": jobs.stop, "restore": jobs.restore}[name](arguments.id)


def _facts(job: jobs.Job) -> dict[str, Any]:
    return {**dataclasses.asdict(job), "path": str(job.path)}


def _print(job: jobs.Job, as_json: bool, text: str) -> None:
    _write(_facts(job), as_json, text)


def _write(facts: object, as_json: bool, text: str) -> None:
    sys.stdout.write((json.dumps(facts, ensure_ascii=False) if as_json else text) + "\n")


def _state(job: jobs.Job) -> str:
    return f"queued, place {job.place + 1}" if job.place is not None else job.state


def _table(found: Sequence[jobs.Job]) -> str:
    rows = [("RUN", "STATE", "STEP", "TITLE")]
    rows += [
        (job.id, _state(job), f"{job.step}/{job.steps}" if job.steps else "-", job.title)
        for job in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[3]]).rstrip())
    return "\n".join(lines)

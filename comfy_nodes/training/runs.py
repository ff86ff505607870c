"""DP-DMD Runs: how a run stands, with its last preview; stops it or lets it go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import RunError
from ..host import running
from ..host.inputs import node_input

if TYPE_CHECKING:
    from ...app.jobs import Job

LATEST, BETWEEN = "the newest run", " · "
ACTIONS = ("look", "stop", "resume")
EMPTY_SIDE = 64


def run_choices() -> list[str]:
    """Names of runs with their titles, newest first."""
    from ...app.jobs import all_jobs

    found = [f"{job.id}{BETWEEN}{job.title}" for job in all_jobs() if job.kind == "distill"]
    return [LATEST, *found]


class Runs:
    """DP-DMD Runs."""

    DISPLAY_NAME = "DP-DMD Runs"
    CATEGORY = "DP-DMD/training"
    DESCRIPTION = (
        "Shows how far a training run is, with its last preview; stops it, or lets it go on where "
        "it was. Press R to refresh the list."
    )
    SEARCH_ALIASES = ("training progress", "distillation progress", "queue", "resume training")
    RETURN_TYPES = ("IMAGE", "STRING", "FLOAT")
    RETURN_NAMES = ("preview", "status", "progress")
    OUTPUT_TOOLTIPS = (
        "The teacher's and the newest student's preview; black if there is none yet.",
        "State, progress and last message.",
        "Finished share, from 0 to 1.",
    )
    FUNCTION = "look"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        run = "The run, by its name; R refreshes the list."
        action = (
            "look changes nothing. stop ends the run after the current update and keeps what there "
            "is. resume lets it go on. Where that is so already, they change nothing."
        )
        return {
            "required": {
                "run": node_input(run_choices(), run, default=LATEST),
                "action": node_input(ACTIONS, action, default="look"),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, run: str) -> bool:
        """Any text: a run that has gone is told in our own words."""
        return isinstance(run, str)

    @classmethod
    def IS_CHANGED(cls, **values: Any) -> float:
        """Looked at anew each time."""
        return float("nan")

    def look(self, run: str, action: str) -> dict[str, Any]:
        """Do the action and show the run.

        Raises:
            RunError: there is no such run, or the action is not possible in its state.
        """
        from ...app import jobs
        from .waiting import latest_image

        job = _find(run)
        if action == "stop" and (job.live or job.state == "queued"):
            job = jobs.stop(job.id)
        elif action == "resume" and not job.live and job.state not in ("queued", "finished"):
            job = jobs.start(job.id)  # a graph is queued again and again with its action left on
        image = latest_image(job.path)
        text = status(job)
        return running.outcome(text, (_image(image), text, share(job)), image)


def _find(run: str) -> Job:
    from ...app import jobs

    if run != LATEST:
        return jobs.get_job(run.partition(BETWEEN)[0].strip())
    newest = next((job for job in jobs.all_jobs() if job.kind == "distill"), None)
    if newest is None:
        raise RunError("There are no runs yet. Start one with DP-DMD Distill, then refresh (R).")
    return newest


def share(job: Job) -> float:
    """The finished share of a run, from 0 to 1."""
    if job.state == "finished":
        return 1.0
    return min(1.0, job.step / job.steps) if job.steps else 0.0


def status(job: Job) -> str:
    """How a run stands, with what it said last."""
    from .waiting import words

    said = job.message if job.state in ("failed", "interrupted", "stopped") else ""
    lora = job.result.get("lora")
    made = f"LoRA: {lora}" if isinstance(lora, str) else ""
    return "\n".join(part for part in (job.title, words(job), said, made) if part)


def _image(image: Any) -> Tensor:
    """A PIL image as an IMAGE, float32 (1, H, W, 3) from 0 to 1; a black one for None."""
    if image is None:
        return torch.zeros(1, EMPTY_SIDE, EMPTY_SIDE, 3)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]


NODES = (Runs,)

"""Jobs: distillations and other tasks of the worker, their queue, and the process that runs them.

Front ends use what is named here. What they see is read from the jobs' directories each time, so
that any number of them agree, and nothing is lost with a process that ends.
"""

from .actions import (
    check_run,
    delete,
    duplicate,
    free_output,
    rename,
    restore,
    start,
    stop,
    submit_check,
    submit_distill,
    submit_task,
)
from .job import KINDS, LIVE, Job, all_jobs, get_job, log_tail, made_loras
from .queue import move
from .spawn import ensure_worker, worker_lives
from .worker import work

__all__ = [
    "KINDS",
    "LIVE",
    "Job",
    "all_jobs",
    "check_run",
    "delete",
    "duplicate",
    "ensure_worker",
    "free_output",
    "get_job",
    "log_tail",
    "made_loras",
    "move",
    "rename",
    "restore",
    "start",
    "stop",
    "submit_check",
    "submit_distill",
    "submit_task",
    "work",
    "worker_lives",
]

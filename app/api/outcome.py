"""What a finished run offers: its report, and a package to share."""

from __future__ import annotations

from pathlib import Path

from ...core.errors import RunError
from .. import jobs
from ..jobs import Job
from ..library.home import home, numbered
from ..share.names import safe_name
from .exchange import RefusedError, Response

MAX_REPORT_BYTES = 256 << 20
IMAGES = 8
"""Pictures of a package, as the Share page has it."""
# The page is one file that loads nothing; what a file of that name may hold else does nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox allow-popups"


def has_report(job: Job) -> bool:
    """Whether a run has written its report."""
    return _report(job).is_file()


def _report(job: Job) -> Path:
    return job.path / "report" / "report.html"


def report(job: Job) -> Response:
    """The report's page.

    Raises:
        RefusedError: there is none.
    """
    try:
        path = _report(job)
        own = path.resolve().is_relative_to(job.path.resolve())  # no link to another file
        small = path.stat().st_size <= MAX_REPORT_BYTES
        content = path.read_bytes() if own and small else b""
    except OSError:
        content = b""
    if not content:
        raise RefusedError(404, f"{job.title} has no report. It is written when a run ends.")
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
    }
    return Response(200, "text/html; charset=utf-8", content, headers)


def share(job: Job) -> Job:
    """Queue the package of a run's LoRA, as the Share page's form has it before it is filled in.

    Raises:
        RunError: the run has no LoRA.
        DPDMDError: the job cannot be written.
    """
    lora = job.result.get("lora")
    if job.kind != "distill" or not isinstance(lora, str) or not Path(lora).is_file():
        raise RunError(f"{job.title} has no LoRA that could be shared.")
    name = Path(lora).stem
    folders = (home() / "packages" / found for found in numbered(safe_name(name)))
    output = next(
        folder
        for folder in folders
        if not folder.exists() and not folder.with_name(f"{folder.name}.zip").exists()
    )
    arguments = [str(job.path), f"--name={name}", f"--count={IMAGES}", "--output", str(output)]
    return jobs.submit_task("package", [*arguments, "--json"], f"Package {name}")

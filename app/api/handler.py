"""The addresses below PREFIX and what each does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import DPDMDError, OutputError, PromptError, RunError, SettingsError
from .. import jobs
from ..config.distill_config import DistillConfig
from ..config.request import DistillRequest, ModelFiles
from ..environment import readiness
from ..jobs import Job
from ..jobs.files import runs
from ..library.inspect import inspect
from ..library.model_folders import contained
from ..library.path_checks import lora_file
from ..prompts.reading import PromptList, parse_prompts
from .exchange import (
    NOT_HERE,
    RefusedError,
    Request,
    Response,
    error_response,
    json_response,
    read_request,
)
from .outcome import report, share
from .run_detail import job_facts, previews_of, run_detail

MAX_PREVIEW_BYTES = 64 << 20
SETUP_TITLE = "Set up the trainer"
ACTIONS = ("start", "stop", "resume", "duplicate", "rename", "move", "check")
NEW_CHECK = ("checkpoint", "prompts", "title", "config")
"""What a page may say of a new check."""
NEW_RUN = (*NEW_CHECK, "output_name")
"""What it may say of a new run."""
SAID = ("message", "text", "advice")
"""Parts of an answer that are said to people, and may name options."""
_log = logging.getLogger("dpdmd_studio.api")


class Api:
    """Answers requests about runs. It holds no state: everything is read from the runs.

    Args:
        model_folders: where a host's models may lie, asked anew for each request.
        lora_folder: where it keeps LoRAs, for new ones.
        hosts_own: what only one host can answer: the answer, ready for JSON, to a POST by its
            address and body.
        reworded: a message that names options, in the words of the pages that ask.
    """

    def __init__(
        self,
        model_folders: Callable[[], Sequence[Path]],
        lora_folder: Callable[[], Path],
        hosts_own: Mapping[str, Callable[[Mapping[str, Any]], object]] | None = None,
        reworded: Callable[[str], str] = str,
    ) -> None:
        self._model_folders, self._lora_folder = model_folders, lora_folder
        self._hosts_own, self._reworded = dict(hosts_own or {}), reworded

    def handle(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> Response:
        """The answer to a request; never raises. It reads files, so call it in a thread.

        Args:
            path: as it was sent, percent signs included; anything may stand before PREFIX.
            body: None for one that was too large to be read.
            headers: names in any case.
        """
        try:
            return self._answer(read_request(method, path, query, body, headers))
        except RefusedError as refusal:
            return error_response(refusal.status, str(refusal))
        except DPDMDError as error:
            return error_response(_status(error), self._reworded(str(error)))
        except Exception:
            _log.exception("%s %s failed", method, path)
            return error_response(
                500, "Something went wrong inside DP-DMD Studio. This server's log says what."
            )

    def _answer(self, request: Request) -> Response:
        match (request.method, *request.parts):
            case ("GET", "state"):
                return self._json(state())
            case ("GET", "inspect"):
                return self._json(self._inspect(request.query))
            case ("GET", "runs", id):
                return self._json(run_detail(_job(id)))
            case ("GET", "runs", id, "previews", name):
                return _preview(_job(id), name)
            case ("GET", "runs", id, "report"):
                return report(_job(id))
            case ("POST", "runs", id, "share"):
                return self._json(job_facts(share(_job(id))))
            case ("POST", "runs", id, "delete"):
                job = _job(id)
                return self._json(job_facts(job) | {"trash": jobs.delete(id).name})
            case ("POST", "trash", name, "restore"):
                return self._json(job_facts(jobs.restore(name)))
            case ("POST", "setup"):
                return self._json(job_facts(set_up()))
            case ("POST", "runs"):
                found = new_run(request.body, self._model_folders(), self._lora_folder())
                return self._json(job_facts(found))
            case ("POST", "checks"):
                return self._json(job_facts(new_check(request.body, self._model_folders())))
            case ("POST", "runs", id, action) if action in ACTIONS:
                return self._json(job_facts(act(id, action, request.body)))
            case ("POST", name) if name in self._hosts_own:
                return self._json(self._hosts_own[name](request.body))
        raise RefusedError(404, NOT_HERE)

    def _json(self, content: object) -> Response:
        """An answer in JSON, with what is said to people in the words of the pages."""
        return json_response(_with_words(content, self._reworded))

    def _inspect(self, query: Mapping[str, str]) -> dict[str, object]:
        """What a model file says of itself; hashes only when asked for, as they take minutes."""
        folders = [*self._model_folders(), self._lora_folder(), runs()]
        path = contained(query.get("path", ""), folders)
        return inspect(path, hashed=query.get("hashes") == "1")


def _with_words(content: Any, reworded: Callable[[str], str]) -> Any:
    if isinstance(content, list):
        return [_with_words(value, reworded) for value in content]
    if not isinstance(content, dict):
        return content
    return {
        name: reworded(value)
        if name in SAID and isinstance(value, str)
        else _with_words(value, reworded)
        for name, value in content.items()
    }


def _status(error: DPDMDError) -> int:
    """409 where the state of a run or of the disk is in the way, 400 for what was asked."""
    return 409 if isinstance(error, RunError | OutputError) else 400


def state() -> dict[str, Any]:
    """All jobs, newest first, and how the trainer stands."""
    every = jobs.all_jobs()
    setup = next((job_facts(job) for job in every if job.kind == "setup"), None)
    trainer = {
        "ready": readiness.is_ready(),
        "outdated": readiness.is_outdated(),
        "command": readiness.setup_command(),
        "setup": setup,
    }
    facts = [job_facts(job) for job in every]
    return {"trainer": trainer, "jobs": facts, "worker": jobs.worker_lives()}


def set_up() -> Job:
    """The job that sets the trainer up: the one that waits or runs already, or a new one."""
    found = [job for job in jobs.all_jobs() if job.kind == "setup"]
    going_on = (job for job in found if job.state == "queued" or job.live)
    return next(going_on, None) or jobs.submit_task("setup", [], SETUP_TITLE)


def new_run(body: Mapping[str, Any], model_folders: Sequence[Path], lora_folder: Path) -> Job:
    """Queue the run that a page describes; the LoRA gets a free name in the folder.

    Args:
        body: "checkpoint" (a path inside the model folders), "prompts" (a list, or a text with one
            a line), and, if wanted, "title", "output_name" and "config" (settings by name).

    Raises:
        DPDMDError: something is missing, unknown, of the wrong kind, or not possible.
    """
    checkpoint, config = _model_and_settings(body, NEW_RUN, model_folders)
    title = _text(body, "title")
    name = _text(body, "output_name") or title or f"{checkpoint.stem[:90]}-4step"
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(checkpoint)),
        config=config,
        output=str(jobs.free_output(lora_file(lora_folder, name))),
    )
    prompts = _prompts(body.get("prompts")).prompts
    return jobs.submit_distill(request, prompts, title, alone=True)


def new_check(body: Mapping[str, Any], model_folders: Sequence[Path]) -> Job:
    """Queue a check of a checkpoint, with what a run of it would have.

    Args:
        body: as that of `new_run`, without a name for the LoRA; prompts may be missing.

    Raises:
        DPDMDError: something is missing, unknown, of the wrong kind, or not possible.
    """
    checkpoint, config = _model_and_settings(body, NEW_CHECK, model_folders)
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(checkpoint)), config=config, output="unused.safetensors"
    )
    prompts = _prompts(body["prompts"]).prompts if body.get("prompts") else ()
    return jobs.submit_check(request, prompts, _text(body, "title"))


def _model_and_settings(
    body: Mapping[str, Any], known: Sequence[str], model_folders: Sequence[Path]
) -> tuple[Path, DistillConfig]:
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise SettingsError(f"Unknown: {', '.join(unknown)[:200]}. Known are {', '.join(known)}.")
    config = body.get("config", {})
    if not isinstance(config, dict):
        raise SettingsError("config is no table of settings; expected names and values.")
    checkpoint = contained(_text(body, "checkpoint"), model_folders)
    return checkpoint, DistillConfig.from_dict(config)


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise SettingsError(f"{name} is a {type(value).__name__}; a text was expected.")
    return value


def _prompts(given: object) -> PromptList:
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        given = "\n".join(given)
    if not isinstance(given, str):
        raise PromptError("There are no prompts; expected a list of texts, or one text.")
    return parse_prompts(given, "The list of prompts")


def act(id: str, action: str, body: Mapping[str, Any]) -> Job:
    """Do something with a job; returns it as it is then."""
    _job(id)
    title = _text(body, "title")
    match action:
        case "start" | "resume":
            return jobs.start(id)
        case "stop":
            return jobs.stop(id)
        case "duplicate":
            return jobs.duplicate(id, title)
        case "check":
            return jobs.check_run(id)
        case "rename":
            return jobs.rename(id, title)
        case _:
            jobs.move(id, _place(body))
            return jobs.get_job(id)


def _place(body: Mapping[str, Any]) -> int:
    place = body.get("place")
    if isinstance(place, bool) or not isinstance(place, int):
        raise RefusedError(400, f"The place is {place!r}; a whole number from 0 was expected.")
    return place


def _job(id: str) -> Job:
    try:
        return jobs.get_job(id)
    except RunError as error:
        raise RefusedError(404, str(error)) from error


def _preview(job: Job, name: str) -> Response:
    """A preview, found among those that are there and never by its path."""
    found = next((preview.path for preview in previews_of(job) if preview.name == name), None)
    missing = f"{job.title} has no such preview. Reload the page; it may have been started anew."
    if found is None:
        raise RefusedError(404, missing)
    try:
        if found.stat().st_size > MAX_PREVIEW_BYTES:
            raise RefusedError(
                404, f"{name} is far too large for a preview. Open the run's folder."
            )
        content = found.read_bytes()
    except OSError as error:
        raise RefusedError(404, missing) from error
    headers = {"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}
    return Response(200, "image/png", content, headers)

"""One job's process, watched: progress, stop with all it started, odd ends, a worker that died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from dpdmd_studio.app import jobs
from dpdmd_studio.app.jobs import queue, spawn, worker
from dpdmd_studio.app.runs import exit_note
from dpdmd_studio.app.runs.lock import owned
from dpdmd_studio.app.runs.process_identity import identity_of, live_process

PATIENCE_SECONDS = 60
WORKER_LIVES = spawn.worker_lives


@pytest.fixture(autouse=True)
def nobody_works(home, monkeypatch):
    """No worker process is started: one seems to live."""
    monkeypatch.setattr(spawn, "worker_lives", lambda: True)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, jobs.all_jobs()
        time.sleep(0.02)


@pytest.fixture
def job(monkeypatch) -> Callable[[str], jobs.Job]:
    """A task whose process runs the Python text given."""

    def made(program: str, kind: str = "setup") -> jobs.Job:
        monkeypatch.setattr(
            worker, "_command", lambda folder, task: [sys.executable, "-u", "-c", program]
        )
        return jobs.submit_task(kind, ["x"], "a task")

    return made


@contextlib.contextmanager
def worked() -> Iterator[None]:
    """A worker in a thread, until the queue is empty."""
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_steps_of_a_task_are_its_progress(job):
    task = job("import time; print('[2/4] PyTorch'); print('    12 MB'); time.sleep(60)")
    with worked():
        until(lambda: jobs.get_job(task.id).steps)
        found = jobs.get_job(task.id)
        assert (found.state, found.step, found.steps) == ("running", 1, 4)  # the second has begun
        assert found.message == "    12 MB"
        jobs.stop(task.id)
    assert jobs.get_job(task.id).state == "stopped"


def test_a_task_that_has_said_nothing_yet_has_no_message(job):
    task = job("import time; time.sleep(60)")
    with worked():
        until(lambda: jobs.log_tail(task.id).startswith("--- "))
        assert jobs.get_job(task.id).message == ""
        jobs.stop(task.id)


def test_stopping_a_task_ends_what_it_started_as_well(job):
    inner = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', "
    inner += "'import time; time.sleep(60)']); print(p.pid); p.wait()"
    task = job(inner)
    with worked():
        until(lambda: jobs.log_tail(task.id).splitlines()[1:])
        grandchild = int(jobs.log_tail(task.id).splitlines()[-1])
        assert identity_of(grandchild) is not None
        began = time.monotonic()
        assert jobs.stop(task.id).state in ("stopping", "stopped")
    assert time.monotonic() - began < spawn.GRACE_SECONDS + 20
    until(lambda: identity_of(grandchild) is None)
    found = jobs.get_job(task.id)
    assert (found.state, found.message) == ("stopped", "Stopped.")


ENDS = {
    "success": ("print('done')", "finished", "done"),
    "a user's mistake": (
        "import sys; print('error: no such file', file=sys.stderr); sys.exit(2)",
        "failed",
        "no such file",
    ),
    "a fault of ours": ("1 / 0", "failed", "ZeroDivisionError: division by zero"),
    "from outside": ("import os; os._exit(77)", "interrupted", "exit code 0x4d"),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_is_noted_and_the_queue_goes_on(end, job):
    program, state, message = ENDS[end]
    first = job(program)
    second = jobs.submit_task("setup", ["y"], "the next")
    with worked():
        pass
    found = jobs.get_job(first.id)
    assert found.state == state and message in found.message
    assert jobs.get_job(second.id).state == state and queue.waiting() == []
    left = {path.name for path in found.path.iterdir()}
    assert not left & {"taken.json", "child.json", "queued", "stop", exit_note.RESERVE}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("SIGSEGV", "crashed in a library's own code (signal 11)"),
        ("SIGABRT", "crashed in a library's own code (signal 6)"),
        ("SIGKILL", "no memory left"),
        ("SIGUSR1", "ended from outside (signal 10)"),
    ],
)
def test_what_a_signal_means_is_said(number, said, tmp_path):
    text = worker._reason(tmp_path, -getattr(signal, number))
    assert said in text and "Start it again; it goes on from its last state." in text


def test_a_crash_on_windows_is_told_from_an_end_from_outside(tmp_path):
    assert "crashed in a library's own code (exit code 0xc0000005)" in worker._reason(
        tmp_path, 0xC0000005
    )
    assert "ended from outside (exit code 0x4d)" in worker._reason(tmp_path, 77)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_crash_leaves_a_trace_in_the_log(job):
    task = job("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with worked():
        pass
    assert "crashed" in jobs.get_job(task.id).message
    assert "Segmentation fault" in jobs.log_tail(task.id)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_killed_task_is_interrupted_and_can_start_again(job):
    task = job("import os, signal, time; time.sleep(0.2); os.kill(os.getpid(), signal.SIGKILL)")
    with worked():
        pass
    found = jobs.get_job(task.id)
    assert found.state == "interrupted" and "signal 9" in found.message
    assert jobs.start(task.id).state == "queued"


def test_a_program_that_is_not_there_fails_its_job_alone(job, monkeypatch):
    task = job("")
    monkeypatch.setattr(worker, "_command", lambda folder, task: ["/no/such/program"])
    with worked():
        pass
    found = jobs.get_job(task.id)
    assert found.state == "failed" and "/no/such/program" in found.message


@pytest.mark.parametrize(
    "content", ['{"kind": "setup", "arguments": 5}', '{"kind": "compare"}', "[]"]
)
def test_a_damaged_task_in_the_queue_does_not_end_the_worker(content, job, monkeypatch):
    original = worker._command
    good = job("print('good')")
    bad = jobs.submit_task("setup", [], "bad")
    (bad.path / "task.json").write_text(content)
    ours = worker._command

    def command(folder, task):
        return ours(folder, task) if folder == good.path else original(folder, task)

    monkeypatch.setattr(worker, "_command", command)
    monkeypatch.setattr(
        worker,
        "worker_command",
        lambda *words: [sys.executable, "-c", "import sys; sys.exit(2)"],
    )
    with worked():
        pass
    assert jobs.get_job(good.id).state == "finished"
    assert jobs.get_job(bad.id).state in ("failed", "interrupted")


def test_the_task_of_a_worker_that_died_can_be_stopped_and_no_other_starts(job):
    program = "import time; time.sleep(60)"
    task = job(program)
    (task.path / "queued").unlink()
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        facts = {"pid": process.pid, "identity": identity_of(process.pid), "since": time.time()}
        host = json.dumps(facts | {"host": socket.gethostname()})
        (task.path / "child.json").write_text(host)
        assert jobs.get_job(task.id).state == "running"
        waiting = jobs.submit_task("setup", ["z"], "waiting")
        with contextlib.ExitStack() as stack:
            assert worker._take(stack) is None  # its device is not free
        jobs.stop(task.id)
        until(lambda: live_process(task.path / "child.json") is None)
        assert jobs.get_job(task.id).state == "stopped"
        with contextlib.ExitStack() as stack:
            assert worker._take(stack) == waiting.path
    finally:
        process.kill()
        process.wait()


def test_a_second_worker_leaves_at_once(job, home):
    task = job("print('x')")
    with owned(home / spawn.WORKER_LOCK):
        assert worker.work() == 0
        assert jobs.get_job(task.id).state == "queued"


def test_a_run_that_a_terminal_goes_on_with_is_not_taken(job):
    task = job("print('x')")
    with owned(task.path / "lock.json"), contextlib.ExitStack() as stack:
        assert worker._take(stack) is None and queue.waiting() == [task.path]


def test_a_run_that_a_terminal_has_finished_meanwhile_leaves_the_queue(job):
    task = job("print('x')")
    exit_note.note(task.path, 0, "")
    with contextlib.ExitStack() as stack:
        assert worker._take(stack) is None and queue.waiting() == []
    assert jobs.get_job(task.id).state == "finished"


def test_a_worker_is_started_once_and_only_if_there_is_work(job, monkeypatch):
    started = []

    class Process:
        def poll(self) -> None:
            return None

    monkeypatch.setattr(spawn, "worker_lives", lambda: False)
    monkeypatch.setattr(spawn, "_started", [])
    monkeypatch.setattr(spawn, "detached", lambda *words: started.append(words) or Process())
    assert not jobs.ensure_worker()
    job("print('x')")
    assert not jobs.ensure_worker()  # it is on its way already
    assert len(started) == 1 and started[0][0][-1] == "work"


def test_a_worker_that_lived_and_is_about_to_end_is_not_waited_for(job, home, monkeypatch):
    """Its process may take a moment to end, after it gave back the queue."""
    process = SimpleNamespace(poll=lambda: None)
    monkeypatch.setattr(spawn, "_started", [(process, time.monotonic())])
    monkeypatch.setattr(spawn, "detached", lambda *words: process)
    job("print('x')")
    monkeypatch.setattr(spawn, "worker_lives", WORKER_LIVES)
    with owned(home / spawn.WORKER_LOCK):
        assert not jobs.ensure_worker()
    assert jobs.ensure_worker()


def test_signals_of_a_terminal_do_not_reach_the_worker():
    if os.name == "nt":
        pytest.skip("Windows has no sessions")
    program = "import os; print(os.getsid(0) == os.getpid())"
    process = spawn.detached([sys.executable, "-c", program], subprocess.PIPE, subprocess.PIPE, {})
    assert process.communicate()[0].strip() == b"True"
    assert process.returncode == 0


def test_a_set_up_says_so_even_below_a_host(tmp_path):
    """Without the word, install.py in a host's folder only says how to go on."""
    task = {"kind": "setup", "arguments": ["--no-xformers"], "python": "py"}
    command = worker._command(tmp_path, task)
    assert command[0] == "py" and command[-2:] == ["setup", "--no-xformers"]

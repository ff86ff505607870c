"""Locks: ended processes, drives without locks, older versions, and two that want the same one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dpdmd_studio.app.jobs import spawn
from dpdmd_studio.app.runs import lock as run_lock
from dpdmd_studio.app.runs import process_identity
from dpdmd_studio.app.runs.lock import guard, live_owner, owned
from dpdmd_studio.app.runs.process_identity import (
    UNKNOWN,
    identity_of,
    live_process,
    lives,
    note_process,
    noted_process,
)
from dpdmd_studio.core.errors import OutputError, RunError
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[3]
HERE = socket.gethostname()


def older(path: Path, pid: int, *, host: str = HERE, identity: str = UNKNOWN) -> Path:
    """A lock of an older version, which knew its owner by the number alone."""
    facts = {"pid": pid, "host": host, "identity": identity, "since": 0.0, "about": "a test"}
    path.write_text(json.dumps(facts))
    return path


def left(path: Path) -> Path:
    """What an owner that was killed leaves."""
    facts = {"version": run_lock.LOCK_VERSION, "pid": os.getpid(), "host": HERE, "since": 0.0}
    path.write_text(json.dumps(facts))
    return path


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_keeps_its_identity_and_shares_it_with_no_other(sleeper):
    first = identity_of(sleeper.pid)
    time.sleep(0.05)
    assert first and identity_of(sleeper.pid) == first
    assert identity_of(os.getpid()) != first
    assert lives(sleeper.pid, first) and not lives(os.getpid(), first)


def test_an_ended_process_that_nobody_collected_does_not_live():
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while identity_of(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert identity_of(process.pid) is None  # `wait` has not been called yet
    process.wait()
    assert not lives(process.pid, UNKNOWN)


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps")
def test_where_there_is_no_proc_ps_says_the_same(sleeper):
    first = process_identity._on_other_systems(sleeper.pid)
    assert first and process_identity._on_other_systems(sleeper.pid) == first
    sleeper.kill()
    deadline = time.monotonic() + 20
    while process_identity._on_other_systems(sleeper.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process_identity._on_other_systems(sleeper.pid) is None  # ended, not yet collected


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 9, 2**31, 2**40])
def test_no_process_has_such_a_number(pid):
    assert identity_of(pid) is None


def test_a_process_that_was_noted_is_found_again_until_it_ends(tmp_path, sleeper):
    path = tmp_path / "child.json"
    assert noted_process(path) is None and live_process(path) is None
    note_process(path, sleeper.pid)
    noted = live_process(path)
    assert noted and (noted.pid, noted.host) == (sleeper.pid, HERE)
    sleeper.kill()
    sleeper.wait()
    assert live_process(path) is None and noted_process(path) == noted


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "x"}', "\x00\xff", "[" * 100_000])
def test_a_damaged_note_names_no_process(tmp_path, content):
    path = tmp_path / "child.json"
    path.write_text(content)
    assert noted_process(path) is None and live_process(path) is None


def test_those_who_meet_a_lock_are_told_who_has_it(tmp_path):
    path = tmp_path / "lock.json"
    with owned(path, about="a test"):
        owner = live_owner(path)
        assert (owner.pid, owner.host, owner.about) == (os.getpid(), HERE, "a test")
        assert abs(owner.since - time.time()) < 60
        with pytest.raises(RunError, match=f"process {os.getpid()} on {HERE}"), owned(path):
            pass
        with (
            pytest.raises(RunError, match="a test!"),
            owned(path, refusal=lambda o: o.about + "!"),
        ):
            pass
        path.write_text("damaged")
        assert live_owner(path).pid == -1
        with pytest.raises(RunError, match="another program"), owned(path):
            pass
    assert live_owner(path) is None and not path.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "x"}', "\x00\xff", None])
def test_a_file_that_nobody_holds_is_free(tmp_path, content):
    path = left(tmp_path / "lock.json")
    if content is not None:
        path.write_text(content)
    assert live_owner(path) is None and path.exists()
    with owned(path):
        assert live_owner(path).pid == os.getpid()


def test_a_lock_is_not_taken_where_it_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "lock.json"

    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(run_lock.atomic_write, "write_text", full)
        with pytest.raises(OutputError), owned(path):
            pass
    with owned(path):
        pass
    with pytest.raises(OutputError, match="does not exist"), owned(tmp_path / "gone" / "lock.json"):
        pass
    assert not (tmp_path / "gone").exists()


def test_the_lock_of_an_older_version_holds_as_long_as_its_process_lives(tmp_path, sleeper):
    path = older(tmp_path / "lock.json", sleeper.pid, identity="an/earlier one")
    assert live_owner(path) is None  # the number was used again
    with owned(path):
        assert live_owner(path).pid == os.getpid()
    older(path, sleeper.pid, identity=identity_of(sleeper.pid))
    assert live_owner(path).about == "a test"
    with pytest.raises(RunError, match=f"process {sleeper.pid}"), owned(path):
        pass
    assert json.loads(path.read_text())["pid"] == sleeper.pid  # left alone
    sleeper.kill()
    sleeper.wait()
    with owned(path):
        pass


def test_an_older_version_s_lock_of_another_machine_ends_when_nobody_touches_it(tmp_path):
    path = older(tmp_path / "lock.json", 1, host="elsewhere")
    with pytest.raises(RunError, match="on elsewhere"), owned(path):
        pass
    old = time.time() - process_identity.STALE_NOTE_SECONDS - 1
    os.utime(path, (old, old))
    with owned(path):
        assert live_owner(path).host == HERE


def test_an_older_version_finds_the_owner_in_the_file(tmp_path):
    """It asks for the number, the machine and the time, under the same guard."""
    path = tmp_path / "lock.json"
    with owned(path, about="a test"):
        noted = live_process(path)
        assert noted and (noted.pid, noted.identity) == (os.getpid(), UNKNOWN)
        assert (tmp_path / ".lock.json.guard").exists()


def test_of_many_threads_that_find_a_stale_lock_one_at_a_time_owns_it(tmp_path):
    path = tmp_path / "lock.json"
    inside, most, wins = [0], [0], []
    barrier = threading.Barrier(8)

    def contend(number: int) -> None:
        for _ in range(6):
            barrier.wait()
            if number == 0:
                left(path)
            barrier.wait()
            with contextlib.suppress(RunError), owned(path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                wins.append(number)
                time.sleep(0.002)
                inside[0] -= 1

    threads = [threading.Thread(target=contend, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and len(wins) >= 6


MOUNT = """
import importlib.util, os, sys, time
root, lock, *words = sys.argv[1:]
spec = importlib.util.spec_from_file_location("dpdmd_studio", root + "/__init__.py")
sys.modules["dpdmd_studio"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from pathlib import Path
from dpdmd_studio.core.errors import RunError
from dpdmd_studio.app.runs.lock import live_owner, owned
"""
CONTENDER = (
    MOUNT
    + """
begin, log = words
while time.time() < float(begin):
    pass
try:
    with owned(Path(lock)):
        open(log, "a").write("won\\n")
        time.sleep(1.5)
except RunError:
    open(log, "a").write("lost\\n")
"""
)


def test_of_several_processes_that_find_a_stale_lock_one_wins(tmp_path):
    path, log = left(tmp_path / "lock.json"), tmp_path / "log"
    begin = str(time.time() + 1.0)
    words = [sys.executable, "-c", CONTENDER, str(ROOT), str(path), begin, str(log)]
    for process in [subprocess.Popen(words) for _ in range(4)]:
        assert process.wait() == 0
    assert sorted(log.read_text().split()) == ["lost", "lost", "lost", "won"]
    assert not path.exists()


OWNER = (
    MOUNT
    + """
import subprocess
from dpdmd_studio.app.jobs.spawn import detached
with owned(Path(lock), about="an owner"):
    program = "import time; time.sleep(60)"
    nowhere = subprocess.DEVNULL
    child = detached([sys.executable, "-c", program], nowhere, nowhere, os.environ)
    print(child.pid, flush=True)
    time.sleep(60)
"""
)


def test_a_lock_ends_with_its_process_though_what_that_started_goes_on(tmp_path):
    path = tmp_path / "lock.json"
    words = [sys.executable, "-c", OWNER, str(ROOT), str(path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        owner = live_owner(path)
        assert owner and (owner.pid, owner.about) == (process.pid, "an owner")
        with pytest.raises(RunError, match=f"process {process.pid}"), owned(path):
            pass
        process.kill()
        process.wait()
        assert path.exists() and live_owner(path) is None and identity_of(child) is not None
        with owned(path):
            assert live_owner(path).pid == os.getpid()
    finally:
        process.kill()
        spawn.end_process(child)
        process.communicate()


ASKER = (
    MOUNT
    + """
until = time.time() + 2.0
while time.time() < until:
    if live_owner(Path(lock)) is not None:
        sys.exit("an asker was taken for an owner")
"""
)


def test_those_who_ask_are_not_taken_for_owners(tmp_path):
    path = left(tmp_path / "lock.json")
    words = [sys.executable, "-c", ASKER, str(ROOT), str(path)]
    for process in [subprocess.Popen(words) for _ in range(3)]:
        assert process.wait() == 0


@pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def without_locks(tmp_path, monkeypatch, request) -> Path:
    """A folder on a drive without locks; the folder for temporary files is on another."""
    fcntl = pytest.importorskip("fcntl")
    drive, others = tmp_path / "drive", tmp_path / "temporary"
    drive.mkdir()
    others.mkdir()
    flock = fcntl.flock

    def refuse(handle: int, operation: int) -> None:
        if str(drive) in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(request.param, "not on this drive")
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(run_lock, "_drives", {})
    monkeypatch.setattr(run_lock.tempfile, "tempdir", str(others))
    return drive


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are needed")
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_drive_without_locks_keeps_them_on_this_machine(without_locks):
    path = without_locks / "lock.json"
    with guard(path), owned(without_locks / "other.json"):
        assert live_owner(without_locks / "other.json").pid == os.getpid()
    with owned(path):
        assert live_owner(path).pid == os.getpid()
        with pytest.raises(RunError, match="in use by process"), owned(path):
            pass
    assert live_owner(left(path)) is None
    assert [entry.name for entry in without_locks.iterdir() if "try" in entry.name] == []
    assert os.stat(run_lock._elsewhere(path, "held").parent).st_mode & 0o077 == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are needed")
def test_a_library_that_waits_on_such_a_drive_is_seen_through(without_locks, monkeypatch):
    """As versions before 3.13 do: every refusal looks as if somebody had the lock."""
    real = FileLock.acquire

    def acquire(lock, timeout, poll_interval):
        if str(without_locks) in lock.lock_file:
            raise Timeout(lock.lock_file)
        return real(lock, timeout, poll_interval)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    path = without_locks / "lock.json"
    with owned(path), pytest.raises(RunError, match="in use by process"), owned(path):
        pass


def test_a_guard_ends_with_its_process(tmp_path):
    script = f"import os; h=os.open({str(tmp_path / '.x.guard')!r}, os.O_CREAT|os.O_RDWR); "
    script += "import fcntl; fcntl.flock(h, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    if os.name == "posix":
        subprocess.run([sys.executable, "-c", script], check=False)
    with guard(tmp_path / "x"):
        pass


def test_a_guard_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "GUARD_SECONDS", 0.05)
    first, second = guard(tmp_path / "x"), guard(tmp_path / "x")
    with first, pytest.raises(RunError, match=r"\.x\.guard"), second:
        pass

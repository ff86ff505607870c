"""Locks: numbers used again, ended processes, other machines, and two that want the same one."""

from __future__ import annotations

import contextlib
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
from dpdmd_studio.app.runs import lock as run_lock
from dpdmd_studio.app.runs import process_identity
from dpdmd_studio.app.runs.lock import guard, live_owner, owned
from dpdmd_studio.app.runs.process_identity import UNKNOWN, identity_of, lives
from dpdmd_studio.core.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
HERE = socket.gethostname()


def write(path: Path, pid: int, *, host: str = HERE, identity: str = UNKNOWN) -> Path:
    facts = {"pid": pid, "host": host, "identity": identity, "since": 0.0, "about": "a test"}
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


def test_a_number_used_again_is_not_the_owner(tmp_path, sleeper):
    path = write(tmp_path / "lock.json", sleeper.pid, identity="an/earlier one")
    assert live_owner(path) is None
    with owned(path):
        assert live_owner(path).pid == os.getpid()
    path = write(path, sleeper.pid, identity=identity_of(sleeper.pid))
    with pytest.raises(RunError, match=f"process {sleeper.pid}"), owned(path):
        pass
    assert json.loads(path.read_text())["pid"] == sleeper.pid  # left alone


def test_the_lock_of_another_machine_counts_as_long_as_somebody_touches_it(tmp_path):
    path = write(tmp_path / "lock.json", 1, host="elsewhere")
    with pytest.raises(RunError, match="on elsewhere"), owned(path):
        pass
    old = time.time() - run_lock.STALE_LOCK_SECONDS - 1
    os.utime(path, (old, old))
    with owned(path):
        assert live_owner(path).host == HERE


def test_an_owner_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.02)
    path = tmp_path / "lock.json"
    with owned(path):
        os.utime(path, (1.0, 1.0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "x"}', "\x00\xff"])
def test_a_damaged_lock_is_free_after_a_moment(tmp_path, content):
    path = tmp_path / "lock.json"
    path.write_text(content)
    with pytest.raises(RunError), owned(path):
        pass
    old = time.time() - run_lock.DAMAGED_LOCK_SECONDS - 1
    os.utime(path, (old, old))
    with owned(path):
        assert live_owner(path).pid == os.getpid()


def test_a_lock_that_somebody_else_took_meanwhile_is_left_to_them(tmp_path, sleeper):
    path = tmp_path / "lock.json"
    with owned(path):
        write(path, sleeper.pid, identity=identity_of(sleeper.pid))
    assert live_owner(path).pid == sleeper.pid


def test_of_many_threads_that_find_a_stale_lock_one_at_a_time_owns_it(tmp_path):
    path = tmp_path / "lock.json"
    inside, most, wins = [0], [0], []
    barrier = threading.Barrier(8)

    def contend(number: int) -> None:
        for _ in range(6):
            barrier.wait()
            if number == 0:
                write(path, 2**22 + 1, identity="gone")
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


CONTENDER = """
import importlib.util, sys, time
root, lock, begin, log = sys.argv[1:]
spec = importlib.util.spec_from_file_location("dpdmd_studio", root + "/__init__.py")
sys.modules["dpdmd_studio"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from pathlib import Path
from dpdmd_studio.core.errors import RunError
from dpdmd_studio.app.runs.lock import owned
while time.time() < float(begin):
    pass
try:
    with owned(Path(lock)):
        open(log, "a").write("won\\n")
        time.sleep(1.5)
except RunError:
    open(log, "a").write("lost\\n")
"""


def test_of_several_processes_that_find_a_stale_lock_one_wins(tmp_path):
    path, log = write(tmp_path / "lock.json", 2**22 + 1, identity="gone"), tmp_path / "log"
    begin = str(time.time() + 1.0)
    words = [sys.executable, "-c", CONTENDER, str(ROOT), str(path), begin, str(log)]
    for process in [subprocess.Popen(words) for _ in range(4)]:
        assert process.wait() == 0
    assert sorted(log.read_text().split()) == ["lost", "lost", "lost", "won"]
    assert not path.exists()


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

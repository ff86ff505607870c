"""Mounts the checkout as `dpdmd_studio` whatever its folder is called, and keeps tests offline."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", DIFFUSERS_OFFLINE="1")
os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait by spinning come to a standstill on a machine that has other work, and tiny
# networks lose by a second one; this is for the interpreters that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import importlib.util
import runpy
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

runpy.run_path(str(Path(__file__).resolve().parents[1] / "mount.py"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One compute thread: networks this small only lose by more, and results stay the same."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def spared_work() -> Iterator[None]:
    """What costs time and tells nothing here.

    The half a million objects of imported modules are not searched for garbage again and again, and
    no file waits until the disk has it: no test takes the power away.
    """
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the user's data folder, or waits for a run of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPDMD_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine: no test may need a network."""

    def local(address: object) -> bool:
        if not isinstance(address, tuple):
            return True  # a Unix socket
        return str(address[0]) in ("127.0.0.1", "::1", "localhost")

    def guarded(original):
        def connect(self: socket.socket, address: object):
            if not local(address):
                raise RuntimeError(f"a test tried to reach {address!r}; tests run offline")
            return original(self, address)

        return connect

    def refuse_lookup(host: object, *rest: object, **named: object):
        if host in (None, "127.0.0.1", "::1", "localhost", b"localhost"):
            return look_up(host, *rest, **named)
        raise RuntimeError(f"a test tried to look up {host!r}; tests run offline")

    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", refuse_lookup)
    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints of the three families, single files in fp16."""
    import checkpoints
    from tiny_runs import BUILDERS

    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: checkpoints.save(folder / f"{name}.safetensors", checkpoints.file_state(build()))
        for name, build in BUILDERS.items()
    }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("DPDMD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"

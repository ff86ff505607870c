"""Several processes of one run on this machine, connected as a launcher would connect them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

# a fork has the libraries loaded already; elsewhere each process would load them anew
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or os.uname().sysname != "Linux", reason="processes are forked"
)
SECONDS = 120


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What `accelerate launch` and `torchrun` tell each process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def in_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` gives in each of `size` processes; an exception comes as text.

    Results travel as pickles: tensors as lists.
    """
    context = multiprocessing.get_context("fork")
    port, ends, processes = free_port(), [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_run, args=(theirs, variables(rank, size, port), work, rank, arguments)
        )
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    results: list[Any] = []
    try:
        for end in ends:
            assert end.poll(SECONDS), f"a process hangs; so far {results}"
            try:
                results.append(end.recv())
            except EOFError:
                results.append("died")
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
    return results


def _run(end, environment: dict[str, str], work, rank: int, arguments) -> None:
    from dpdmd_studio.trainer.distributed import joined

    torch.set_num_threads(1)
    os.environ.update(environment)
    joined.cache_clear()
    try:
        result = work(rank, *arguments)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        if os.environ.get("RANK_TRACES"):
            text += "\n" + traceback.format_exc()
        result = text
    end.send(result)
    end.close()

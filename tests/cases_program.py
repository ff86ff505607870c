"""Runs case after case, each in a process of its own that has the large libraries already.

Reads a path a line and answers with a line of JSON: {"code": ..., "out": ..., "err": ...}. A fork
takes a tenth of the time of a new interpreter, which loads torch and diffusers each time; where
there is no fork it starts one all the same.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


def load_libraries() -> None:
    """What every case with a checkpoint needs; nothing of ours, and no threads of torch's."""
    import diffusers
    import torch
    import transformers

    torch.set_num_threads(1)
    _ = [diffusers.AutoencoderKL, diffusers.SD3Transformer2DModel, diffusers.UNet2DConditionModel]
    _ = [diffusers.DDIMScheduler, transformers.CLIPTextModelWithProjection]
    _ = [transformers.CLIPTextModel, transformers.T5EncoderModel]


def forked(case: str, root: str) -> dict[str, object]:
    """How a case ends, in a copy of this process."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(ended(case, root))
        _, status = os.waitpid(child, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    return {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


def ended(case: str, root: str) -> int:
    """The exit code of a case that runs as a program here."""
    sys.argv, sys.stdin = [case, root], open(os.devnull)  # noqa: SIM115
    sys.path[0] = str(Path(case).parent)
    code: object = 0
    try:
        runpy.run_path(case, run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70  # 1 means that the case holds
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 70


def started(case: str, root: str) -> dict[str, object]:
    """How a case ends, in a new interpreter."""
    process = subprocess.run(
        [sys.executable, case, root], capture_output=True, encoding="utf-8", errors="replace"
    )
    return {"code": process.returncode, "out": process.stdout, "err": process.stderr}


if __name__ == "__main__":
    can_fork = sys.platform == "linux"
    if can_fork:
        load_libraries()
    for line in sys.stdin:
        found = (forked if can_fork else started)(line.strip(), sys.argv[1])
        print(json.dumps(found), flush=True)  # noqa: T201

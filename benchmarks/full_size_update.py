"""Memory and time of one student update, with its fake updates, on full-size checkpoints.

    python benchmarks/full_size_update.py [--families sd1 sdxl sd3] [--resolution 256x256]

Writes the random files of `full_size_loading.py`, one at a time, and gives each to the command line
(`distill` with one prompt and one update) in a process of its own. The peak is the whole process's
resident memory: interpreter, mapped weights, text encoders, adapters, optimizers, activations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mounting  # noqa: F401
import torch
from full_size_loading import write_random

FAKE_UPDATES = 5


def measure(checkpoint: Path, resolution: str, dtype: str) -> None:
    """Distil for one update in this process and print what it took."""
    from dpdmd_studio.app.runs.directory import RunDirectory
    from dpdmd_studio.cli import main as command

    torch.set_num_threads(2)
    folder = checkpoint.parent
    (folder / "prompts.txt").write_text("a photo of a cat\n")
    started = time.perf_counter()
    code = command(
        [
            *("distill", str(checkpoint), "--prompts", str(folder / "prompts.txt"), "--overwrite"),
            *("--output", str(folder / "student.safetensors"), "--run", str(folder / "run")),
            *("--steps", "1", "--batch-size", "1", "--fake-updates", str(FAKE_UPDATES)),
            *("--resolution", resolution, "--dtype", dtype, "--device", "cpu"),
            *("--student-rank", "16", "--fake-rank", "16", "--preview-every", "0", "--json"),
        ]
    )
    assert code == 0
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    (line,) = RunDirectory.open(folder / "run").metrics()
    facts = {"peak_gib": int(status["VmHWM"].split()[0]) / 2**20, "update": line["seconds"]}
    print(json.dumps(facts | {"whole": time.perf_counter() - started}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=["sd1", "sdxl", "sd3"])
    parser.add_argument("--resolution", default="256x256")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where the files go; needs 7 GB")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        measure(options.file, options.resolution, options.dtype)
        return
    print("| file | resolution | dtype | peak GiB of the process | s of the update | s in all |")
    print("|---|---|---|---|---|---|")
    for name in options.families:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / f"random-{name}.safetensors"
            write_random(path, name)
            command = [sys.executable, __file__, "--file", str(path)]
            command += ["--resolution", options.resolution, "--dtype", options.dtype]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            facts = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {name} {path.stat().st_size / 1e9:.2f} GB | {options.resolution} | "
                f"{options.dtype} | {facts['peak_gib']:.2f} | {facts['update']:.1f} | "
                f"{facts['whole']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

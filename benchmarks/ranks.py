"""The same run in one process and in several, through `accelerate launch`: losses and seconds.

    python benchmarks/ranks.py [--updates 20] [--processes 2] [--teachers sd1 sd3]

The embedded teachers, on the CPU (gloo), one thread per process. Both runs have the same batch; the
table gives the largest difference of each loss over all updates, relative to its value.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mounting
import torch
from dpdmd_studio.app.runs.directory import RunDirectory

ASSETS = mounting.ROOT / "trainer" / "assets"
LOSSES = ("diversity_loss", "matching_gradient", "fake_loss")
PROMPTS = [f"a {size} {colour} {shape}" for size in ("small", "large")
           for colour in ("red", "blue", "green") for shape in ("circle", "square")]  # fmt: skip
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip


def run(folder: Path, teacher: str, processes: int, settings: dict[str, Any]) -> RunDirectory:
    """One distillation in `processes` processes."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    name = f"{teacher}-{processes}"
    command = [sys.executable]
    if processes > 1:
        command += [*LAUNCH, "--num_processes", str(processes)]
    command += [str(mounting.ROOT), "distill", str(ASSETS / f"shapes-{teacher}.safetensors")]
    command += ["--prompts", str(prompts), "--output", str(folder / f"{name}.safetensors")]
    command += ["--run", str(folder / name), "--device", "cpu"]
    for key, value in settings.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    own = {"DPDMD_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=os.environ | own, stdout=subprocess.DEVNULL)
    return RunDirectory.open(folder / name)


def differences(one: RunDirectory, other: RunDirectory) -> dict[str, float]:
    """Largest relative difference of each loss over the updates."""
    pairs = list(zip(one.metrics(), other.metrics(), strict=True))
    return {
        name: max(abs(a[name] - b[name]) / max(abs(b[name]), 1e-12) for a, b in pairs)
        for name in LOSSES
    }


def seconds(run: RunDirectory) -> float:
    """Median seconds of an update."""
    return float(torch.tensor([line["seconds"] for line in run.metrics()]).median())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Several processes against one.")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--teachers", nargs="+", default=["sd1", "sd3"])
    options = parser.parse_args()
    settings = {"steps": options.updates, "batch_size": 2 * options.processes - 1,
                "evaluate_every": 0, "preview_every": 0}  # fmt: skip
    heads = [f"{name}: largest relative difference" for name in LOSSES]
    print(f"| teacher | batch | {' | '.join(heads)} | s per update, 1 process | "
          f"{options.processes} processes |")  # fmt: skip
    print("|---|---|" + "---|" * (len(heads) + 2))
    with tempfile.TemporaryDirectory() as name:
        for teacher in options.teachers:
            runs = [run(Path(name), teacher, n, settings) for n in (1, options.processes)]
            found = differences(runs[1], runs[0])
            words = " | ".join(f"{value:.1e}" for value in found.values())
            print(f"| shapes-{teacher} | {settings['batch_size']} | {words} | "
                  f"{seconds(runs[0]):.2f} | {seconds(runs[1]):.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

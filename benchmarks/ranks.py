"""The same run in one process and in several, through `accelerate launch`.

    python benchmarks/ranks.py [--updates 20] [--processes 2] [--teachers sd1 sd3]
    python benchmarks/ranks.py --changing [--teachers sd1 sd3]

The embedded teachers, on the CPU (gloo), one thread per process. The runs have the same batch. The
first form gives the largest difference of each loss over all updates and of the finished LoRA's
weights, both relative, and seconds. The second stops a run of two processes, goes on with four, of
which one is killed, then with four, and ends it in one process; its student is compared with that
of a run that one process did in one go.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mounting
import torch
from dpdmd_studio.app.runs.directory import RunDirectory
from safetensors.torch import load_file

ASSETS = mounting.ROOT / "trainer" / "assets"
LOSSES = ("diversity_loss", "matching_gradient", "fake_loss")
PROMPTS = [f"a {size} {colour} {shape}" for size in ("small", "large")
           for colour in ("red", "blue", "green") for shape in ("circle", "square")]  # fmt: skip
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
CHANGING = {"steps": 10, "save_every": 2, "batch_size": 5, "teacher_steps": 8, "fake_updates": 1}
PATIENCE = 1800.0
SAID = "said.txt"


def command(processes: int, *words: str) -> list[str]:
    """A command of ours in that many processes."""
    launch = (*LAUNCH, "--num_processes", str(processes)) if processes > 1 else ()
    return [sys.executable, *launch, str(mounting.ROOT), *words]


def variables(folder: Path) -> dict[str, str]:
    """The environment of such a command."""
    return os.environ | {"DPDMD_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}


def distil(folder: Path, name: str, teacher: str, settings: dict[str, Any]) -> list[str]:
    """What `distill` is told for a run of that name."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    words = ["distill", str(ASSETS / f"emoji-{teacher}.safetensors"), "--device", "cpu"]
    words += ["--prompts", str(prompts), "--output", str(folder / f"{name}.safetensors")]
    words += ["--run", str(folder / name)]
    for key, value in settings.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    return words


def run(folder: Path, teacher: str, processes: int, settings: dict[str, Any]) -> RunDirectory:
    """One distillation in `processes` processes."""
    name = f"{teacher}-{processes}"
    words = command(processes, *distil(folder, name, teacher, settings))
    subprocess.run(words, check=True, env=variables(folder), stdout=subprocess.DEVNULL)
    return RunDirectory.open(folder / name)


def differences(one: RunDirectory, other: RunDirectory) -> dict[str, float]:
    """Largest relative difference of each loss over the updates."""
    pairs = list(zip(one.metrics(), other.metrics(), strict=True))
    return {
        name: max(abs(a[name] - b[name]) / max(abs(b[name]), 1e-12) for a, b in pairs)
        for name in LOSSES
    }


def weights_apart(one: RunDirectory, other: RunDirectory) -> float:
    """Difference of the finished LoRAs' weights, root of the sum of squares, relative."""
    ours, theirs = (load_file(run.settings()["output"]) for run in (one, other))
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours)
    whole = sum(float(tensor.double().square().sum()) for tensor in theirs.values())
    return (apart / whole) ** 0.5


def seconds(run: RunDirectory) -> float:
    """Median seconds of an update."""
    return float(torch.tensor([line["seconds"] for line in run.metrics()]).median())


def until(step: int, run: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run has done so many updates.

    Raises:
        RuntimeError: its processes have ended before.
    """
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        if run.is_dir() and len(RunDirectory(run).metrics()) >= step:
            return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended early: {said(run.parent)[-800:]}")
        time.sleep(0.1)
    for pid in [process.pid, *_children(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    raise RuntimeError(f"no update {step} within {PATIENCE:.0f} s: {said(run.parent)}")


def started(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """A command; what it says goes into a file, `said` reads it."""
    with (folder / SAID).open("wb") as stream:
        return subprocess.Popen(
            words, env=variables(folder), stdout=subprocess.DEVNULL, stderr=stream
        )


def said(folder: Path) -> str:
    """What the last command of `started` has said."""
    return (folder / SAID).read_text(encoding="utf-8", errors="replace")


def stopped_at(folder: Path, name: str, words: list[str], step: int) -> int:
    """Let a run go on until an update, ask it to stop as `runs stop` does; updates then done."""
    process = started(folder, words)
    until(step, folder / name, process)
    (folder / name / "stop").write_text("")
    if process.wait(PATIENCE):
        raise RuntimeError(f"the stop ended with {process.returncode}: {said(folder)[-800:]}")
    return len(RunDirectory(folder / name).metrics())


def one_killed(folder: Path, name: str, words: list[str], step: int) -> dict[str, Any]:
    """Kill the third process of a run after an update; how the others ended."""
    process = started(folder, words)
    until(step, folder / name, process)
    ours = _children(process.pid)
    victim = next(pid for pid in ours if _rank(pid) == "2")
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    process.wait(PATIENCE)
    progress = RunDirectory(folder / name).read_json("progress.json")
    lines = [line for line in said(folder).splitlines() if "error: " in line and "ended" in line]
    return {
        "seconds": time.monotonic() - began,
        "code": process.returncode,
        "left": [pid for pid in ours if _rank(pid)],
        "status": progress["status"],
        "said": lines,
        "error": progress.get("error", ""),
    }


def _children(pid: int) -> list[int]:
    """Processes below one, as Linux lists them."""
    found = []
    for place in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, place.read_text().split()):
            found += [child, *_children(child)]
    return found


def _rank(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
    named = dict(entry.partition("=")[::2] for entry in text.split("\0"))
    return named.get("RANK", "")


def changing(folder: Path, teacher: str, settings: dict[str, Any]) -> None:
    """Two processes, then four of which one is killed, then four, then one; what was found."""
    settings = settings | CHANGING
    straight = run(folder, teacher, 1, settings)
    name = f"{teacher}-changing"
    first = stopped_at(folder, name, command(2, *distil(folder, name, teacher, settings)), 2)
    resume = ("resume", str(folder / name))
    print(f"emoji-{teacher}: two processes stopped after update {first}", flush=True)
    found = one_killed(folder, name, command(4, *resume), first + 2)
    print(f"  one of four killed: all ended {found['seconds']:.1f} s later, code {found['code']}, "
          f"left over {found['left']}, status {found['status']}", flush=True)  # fmt: skip
    print(f"  progress.json says: {found['error']}")
    for line in found["said"]:
        print(f"  said: {line}")
    second = stopped_at(folder, name, command(4, *resume), first + 4)
    print(f"  four processes went on and stopped after update {second}", flush=True)
    subprocess.run(command(1, *resume), check=True, env=variables(folder))
    done = RunDirectory.open(folder / name)
    steps = [int(line["step"]) for line in done.metrics()]
    assert steps == list(range(1, settings["steps"] + 1)), steps
    words = ", ".join(f"{key} {value:.1e}" for key, value in differences(done, straight).items())
    print(f"  against one process in one go: {words}; weights {weights_apart(done, straight):.1e}",
          flush=True)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Several processes against one.")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--teachers", nargs="+", default=["sd1", "sd3"])
    parser.add_argument("--changing", action="store_true")
    options = parser.parse_args()
    settings = {"steps": options.updates, "batch_size": 2 * options.processes - 1,
                "evaluate_every": 0, "preview_every": 0}  # fmt: skip
    if options.changing:
        with tempfile.TemporaryDirectory() as name:
            for teacher in options.teachers:
                changing(Path(name), teacher, settings)
        return
    heads = [f"{name}: largest relative difference" for name in LOSSES]
    heads.append("weights of the LoRA: relative difference")
    print(f"| teacher | batch | {' | '.join(heads)} | s per update, 1 process | "
          f"{options.processes} processes |")  # fmt: skip
    print("|---|---|" + "---|" * (len(heads) + 2))
    with tempfile.TemporaryDirectory() as name:
        for teacher in options.teachers:
            runs = [run(Path(name), teacher, n, settings) for n in (1, options.processes)]
            found = [*differences(runs[1], runs[0]).values(), weights_apart(runs[1], runs[0])]
            words = " | ".join(f"{value:.1e}" for value in found)
            print(f"| emoji-{teacher} | {settings['batch_size']} | {words} | "
                  f"{seconds(runs[0]):.2f} | {seconds(runs[1]):.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

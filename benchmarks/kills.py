"""Kills worker, job and front-end processes at random moments while the queue is changed.

Is a run lost or stuck then, does every LoRA file load, do all runs finish when started again?

    python benchmarks/kills.py --kills 20
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import mounting

sys.path.append(str(mounting.ROOT / "tests"))
STEPS, UPDATES_BETWEEN_STATES = 30, 3


def main() -> int:
    """Exit status: 0 if nothing was lost, stuck, damaged, or left undone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--longest-pause", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--patience", type=float, default=900.0, metavar="SECONDS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPDMD_HOME"] = str(Path(folder) / "home")
        report = _measure(Path(folder), options)
    _print(report, options)
    return 0 if report.sound else 1


def _measure(folder: Path, options: argparse.Namespace):
    import checkpoints
    from dpdmd_studio.app import jobs
    from dpdmd_studio.app.config.distill_config import DistillConfig
    from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
    from killing import kill_at_random
    from tiny_runs import TINY

    state = checkpoints.file_state(checkpoints.sd1())
    checkpoint = checkpoints.save(folder / "teacher.safetensors", state)
    outputs = folder / "loras"
    outputs.mkdir()
    ids = []
    for number in range(options.runs):
        settings = TINY | {"steps": STEPS, "save_every": UPDATES_BETWEEN_STATES}
        request = DistillRequest(
            model=ModelFiles(checkpoint=str(checkpoint)),
            config=DistillConfig.from_dict(settings),
            output=str(outputs / f"run-{number}.safetensors"),
        )
        ids.append(jobs.submit_distill(request, ["a cat", "a dog"], f"run {number}").id)
    return kill_at_random(
        ids,
        outputs,
        kills=options.kills,
        seed=options.seed,
        pause=(0.1, options.longest_pause),
        patience=options.patience,
    )


def _print(report, options: argparse.Namespace) -> None:
    print(f"{options.kills} kills, {options.runs} runs of {STEPS} updates, seed {options.seed}\n")
    print("| killed | while the job was | times |\n|---|---|---|")
    for (what, state), count in sorted(Counter(report.kills).items()):
        print(f"| {what} | {state} | {count} |")
    print("\n| found | number |\n|---|---|")
    print(f"| runs lost | {len(report.lost)} |")
    print(f"| runs stuck | {len(report.stuck)} |")
    print(f"| LoRA files read | {report.loras} |")
    print(f"| of them unreadable | {len(report.unreadable)} |")
    print(f"| runs not finished when started again | {len(report.unfinished)} |")
    print(f"| seconds | {report.seconds:.0f} |")
    for line in [*report.lost, *report.stuck, *report.unreadable, *report.unfinished]:
        print(line)


if __name__ == "__main__":
    sys.exit(main())

"""What a saved state could be packed into, so that a resume goes on from the same bits.

    python benchmarks/state_bytes.py --folder F [--updates 60]

Two runs of the emoji eps teacher, with Adam's moments in 32 bit and in 8 (bitsandbytes); their
states at a third of the run and at its end. Packed are the four bytes of a number as a plane each,
since signs and exponents repeat and the rest does not; whole, and where they differ from the state
before. A plane's entropy is what no coder of single bytes gets below. Bytes are of all files.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import emoji_students
import mounting  # noqa: F401  (makes dpdmd_studio importable)
import numpy as np
import torch
from dpdmd_studio.trainer.commands import demo
from dpdmd_studio.trainer.commands.distill import create_run, run_distillation
from dpdmd_studio.trainer.toys.emoji import captions
from safetensors.torch import load_file

OPTIMIZERS = ("adamw", "adamw8bit")
Tensors = dict[str, torch.Tensor]


def states_of(options: argparse.Namespace, optimizer: str) -> list[Path]:
    """Folders of a run's states, made where they are missing."""
    folder = options.folder / optimizer
    every = options.updates // 3
    kept = [folder / f"state-{step}" for step in (every, 2 * every, 3 * every)]
    if all(path.is_dir() for path in kept):
        return kept
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    changes = [f"steps={4 * every}", f"save_every={every}", f"optimizer={optimizer}"]
    config = emoji_students.settings_of([*changes, "dtype=bfloat16"], 0, "full-size")
    request = emoji_students.request_of("sd1", config, folder)
    prompts = captions.caption_sample(False, demo.TRAINING_PROMPTS, 0)
    run = create_run(folder / "run", request, prompts, overwrite=True)

    def keep(progress) -> None:
        if progress.step % every == 0 and progress.step <= 3 * every:
            shutil.copytree(
                run.states / f"step-{progress.step:08d}", folder / f"state-{progress.step}"
            )

    run_distillation(run, on_progress=keep, with_report=False)
    return kept


def numbers_of(state: Path) -> tuple[Tensors, int]:
    """(tensors by file and name, bytes of the files)."""
    found, size = {}, 0
    for file in sorted(state.glob("*.safetensors")):
        size += file.stat().st_size
        found |= {f"{file.stem}/{name}": value for name, value in load_file(file).items()}
    return found, size


def bytes_of(value: torch.Tensor) -> np.ndarray:
    """A tensor's bytes, shape (numbers, bytes of one)."""
    flat = value.contiguous().flatten()
    return flat.view(torch.uint8).reshape(-1, value.element_size()).numpy()


def planes_of(now: Tensors, before: Tensors | None = None) -> list[np.ndarray]:
    """The first, second, ... byte of all numbers of each size; as differing bits, if asked."""
    groups: dict[int, list[np.ndarray]] = {}
    for name, value in now.items():
        rows = bytes_of(value)
        if before is not None:
            rows = rows ^ bytes_of(before[name])
        groups.setdefault(rows.shape[1], []).append(rows)
    return [
        np.ascontiguousarray(np.concatenate(rows)[:, place])
        for size, rows in groups.items()
        for place in range(size)
    ]


def entropy_bytes(plane: np.ndarray) -> float:
    """Of single bytes."""
    share = np.bincount(plane, minlength=256) / max(1, len(plane))
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() / 8 * len(plane))


CODERS: dict[str, Callable[[np.ndarray], float]] = {
    "zlib": lambda plane: len(zlib.compress(plane.tobytes(), 6)),
    "lzma": lambda plane: len(lzma.compress(plane.tobytes(), preset=1)),
    "entropy": entropy_bytes,
}


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"| state | as it is | {' | '.join(CODERS)} |\n|{' --- |' * (len(CODERS) + 2)}", flush=True
    )
    whole = 0
    for optimizer in OPTIMIZERS:
        states = states_of(options, optimizer)
        last, size = numbers_of(states[-1])
        whole = whole or size
        before, _ = numbers_of(states[-2])
        for name, other in (("", None), (", against the one before", before)):
            planes = planes_of(last, other)
            cells = [f"{size / whole:.2f}" if other is None else ""]
            cells += [f"{sum(map(coder, planes)) / whole:.2f}" for coder in CODERS.values()]
            print(f"| {optimizer}{name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

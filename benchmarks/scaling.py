"""How time and memory of an update grow with batch, resolution, rank, N, K and other settings.

    python benchmarks/scaling.py [--groups batch side rank N K other] [--repeats 3]

The random SD1-layout network of against_three_copies.py, float32; one thing is varied at a time.
Default: batch 1, latent side 16, the product's rank 64, N 4, K 7. The cases of a group and the
default are taken in turn, so that other load hits all alike; ratios are within one turn, of
seconds per student update with its 5 fake updates. "counted" is the work of the timed updates:
passes of the network, each with the images and latent positions it had, a backward as one more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from against_three_copies import Batches, make_call, ours, peak, trainer_tensors
from dpdmd_studio.trainer.training.loop import Trainer

SIDE, RANK = 16, 64
Varied = tuple[int | None, dict[str, Any]]
"""(resolution or None for the default's, settings)"""
DEFAULT = "default"
SAME = {"batch 1", f"latent side {SIDE}", f"rank {RANK}", "N 4", "K 7"}


def variations(sides: Mapping[str, int]) -> dict[str, dict[str, Varied]]:
    """What is varied, in groups by what it is; `sides` are resolutions by name."""
    return {
        "batch": {f"batch {size}": (None, {"batch_size": size}) for size in (1, 2, 4)},
        "side": {name: (side, {}) for name, side in sides.items()},
        "rank": {
            f"rank {rank}": (None, {"student_rank": rank, "fake_rank": rank})
            for rank in (8, 32, 64, 128)
        },
        "N": {f"N {steps}": (None, {"num_steps": steps}) for steps in (2, 4, 8)},
        "K": {f"K {step}": (None, {"anchor_step": step}) for step in (1, 4, 7, 14)},
        "other": {
            "m 2": (None, {"num_anchored_steps": 2}),
            "all steps supervised": (None, {"gradient_steps": "all"}),
            "attention LoRA only": (None, {"lora_layers": "attention"}),
        },
    }


class Case:
    """A trainer, its times and the work that its updates did."""

    def __init__(self, side: int | None, settings: dict[str, Any]) -> None:
        settings = dict(settings)
        rank = settings.pop("student_rank", RANK)
        settings.pop("fake_rank", None)
        batches = Batches(side or SIDE, settings.get("batch_size", 1))
        call = make_call()
        if settings.get("gradient_checkpointing"):
            call.network.enable_gradient_checkpointing()
        self.trainer: Trainer = ours(call, batches, rank, **settings)
        self.times: list[float] = []
        self.work: list[float] = []
        self._done = 0.0
        call.network.register_forward_hook(self._count)
        self.peak = peak(self.trainer.update, lambda: trainer_tensors(self.trainer))

    def _count(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output.sample
        images, _, height, width = found.shape
        passes = 2 if found.requires_grad else 1
        self._done += passes * images * height * width / SIDE**2

    def update(self) -> None:
        """One timed update."""
        self._done = 0.0
        started = time.perf_counter()
        self.trainer.update()
        self.times.append(time.perf_counter() - started)
        self.work.append(self._done)


def measure(group: str, cases: dict[str, Varied], repeats: int) -> list[str]:
    """The table's lines of one group."""
    made = {DEFAULT: Case(None, {})}
    made |= {name: Case(*varied) for name, varied in cases.items()}
    for _ in range(repeats):
        for case in made.values():
            case.update()
    base, lines = made[DEFAULT], []
    for name, case in made.items():
        ratios = [a / b for a, b in zip(case.times, base.times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        cells = [
            group,
            name,
            f"{statistics.median(case.times):.1f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{sum(case.work) / sum(base.work):.2f}",
            f"{case.peak / 2**20:.0f}",
            f"{case.peak / base.peak:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Command line; see the head of this file."""
    groups = variations({f"latent side {side}": side for side in (16, 24, 32)})
    groups["other"]["checkpointing"] = (None, {"gradient_checkpointing": True})
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", nargs="+", choices=groups, default=list(groups))
    parser.add_argument("--repeats", type=int, default=3, help="2 or more")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| varied | case | s per update (median) | ratio to the default, quartiles | counted "
          "| peak live MiB | ratio |")  # fmt: skip
    print("|---|---|---|---|---|---|---|", flush=True)
    for group in options.groups:
        cases = {name: varied for name, varied in groups[group].items() if name not in SAME}
        started = time.perf_counter()
        print("\n".join(measure(group, cases, options.repeats)), flush=True)
        print(f"{group}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

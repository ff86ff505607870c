"""What each way of saving time in an update is worth on this machine, alone and together.

    python benchmarks/speed_tricks.py [--size 32] [--repeats 5] [--only TEXT ...] [--profile]

The random SD1-layout network of against_three_copies.py, batch 1, float32. Ways are taken in turn,
so that other load hits all alike; ratios are within one turn, of seconds per student update with
its 5 fake updates and 28 teacher steps: the default when these were tried. Ways that shall change
nothing are held against that default by the student's gradients; those that compute something else
are marked. Before the timing each way has one gradient and one update; stderr says their seconds
(compiled blocks compile then) and what the compiler counted. --only takes the default and the ways
whose name holds one of the texts. --profile prints the operators that take the most time in an
update of the plain three-copy loop and in ours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from against_three_copies import (
    ANCHOR,
    BEFORE,
    FAKE_UPDATES,
    GUIDANCE,
    Batches,
    baseline_update,
    make_call,
    ours,
)
from dpdmd_studio.core.diffusion.guidance import NO_GUIDANCE, Guidance
from dpdmd_studio.core.diffusion.schedule import Levels
from dpdmd_studio.trainer.model.conditioning import PromptPair
from dpdmd_studio.trainer.model.lora_layers import AdaptedConv2d, AdaptedLinear
from dpdmd_studio.trainer.model.roles import RoleNetwork
from dpdmd_studio.trainer.training.loop import Trainer
from peft.tuners import lora
from three_copies import ThreeCopies
from torch import Tensor

sys.path.append(str(Path(__file__).parent / "gpu"))
from compiling import compile_blocks, counted
from one_pass import one_pass

RANK = 16
DEFAULT = "default"


@contextmanager
def layers_of_peft() -> Iterator[None]:
    """Inside, LoRA layers compute as PEFT's own do."""
    kept = AdaptedLinear.forward, AdaptedConv2d.forward
    AdaptedLinear.forward, AdaptedConv2d.forward = lora.Linear.forward, lora.Conv2d.forward
    try:
        yield
    finally:
        AdaptedLinear.forward, AdaptedConv2d.forward = kept


def scores_in_one_pass(trainer: Trainer) -> None:
    """Take the teacher's and the fake's score of the DMD gradient from one call."""
    apart = trainer.network

    class OnePass:
        """The network bound to some rows, which remembers the fake's score with the teacher's."""

        def __init__(self, prompts: PromptPair, rows: int, of: int) -> None:
            self._bound, self._prompts = apart.bound(prompts, rows, of=of), prompts
            self._waiting: dict[str, Tensor] = {}
            self.prediction, self.backward = self._bound.prediction, self._bound.backward

        def __call__(
            self, role: str, x_t: Tensor, level: Levels, guidance: Guidance = NO_GUIDANCE
        ) -> Tensor:
            if level.sigmas.dim() and role == "teacher":  # a level per image: the DMD gradient
                real, self._waiting["fake"] = one_pass(trainer, self._prompts, x_t, level)
                return real
            if role in self._waiting:
                return self._waiting.pop(role)
            return self._bound(role, x_t, level, guidance)

    class Network(RoleNetwork):
        """Binds to the rows as above."""

        def bound(self, prompts: PromptPair, rows: int, of: int) -> Any:
            return OnePass(prompts, rows, of)

    trainer.gradients.network = Network(apart.call, apart.roles, apart.scales)


def channels_last(trainer: Trainer) -> None:
    """Keep weights, and with them activations, with the channels innermost."""
    trainer.network.call.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compiled(trainer: Trainer) -> None:
    """Compile every transformer block."""
    compile_blocks(trainer.network.call.network)


def nothing(trainer: Trainer) -> None:
    """The product as it is."""


# name: (settings, change to the trainer, what its updates run in, whether the result stays)
Way = tuple[dict[str, Any], Callable[[Trainer], None], Callable[[], Any], bool]
CHEAP: dict[str, Any] = {"teacher_steps": 8}


def everything(trainer: Trainer) -> None:
    """Both changes at once."""
    channels_last(trainer)
    scores_in_one_pass(trainer)


WAYS: dict[str, Way] = {
    DEFAULT: ({}, nothing, nullcontext, True),
    "PEFT's own LoRA layers": ({}, nothing, layers_of_peft, True),
    "channels last": ({}, channels_last, nullcontext, True),
    "teacher and fake in one pass": ({}, scores_in_one_pass, nullcontext, True),
    "fresh roll-outs for the fake": ({"share_rollouts": False}, nothing, nullcontext, False),
    "all DMD steps supervised": ({"gradient_steps": "all"}, nothing, nullcontext, False),
    "compiled blocks": ({}, compiled, nullcontext, True),
    "cheap anchor (teacher 2 of 8)": (CHEAP, nothing, nullcontext, False),
    "cheap anchor, compiled blocks": (CHEAP, compiled, nullcontext, False),
    "cheap anchor, channels last, one pass": (CHEAP, everything, nullcontext, False),
}


def prepared(settings: dict[str, Any], change: Callable[[Trainer], None], size: int) -> Trainer:
    """A trainer whose adapters are away from zero, changed."""
    trainer = ours(make_call(), Batches(size), RANK, **BEFORE | settings)
    generator = torch.Generator().manual_seed(1)
    for role in ("student", "fake"):
        for parameter in trainer.roles.parameters(role):
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    change(trainer)
    return trainer


def student_gradient(trainer: Trainer) -> Tensor:
    """The student's gradients of the first update, in one row."""
    batch = trainer.batches.batch("student", 1)
    trainer.gradients.student(batch, trainer.batches.generator("student-levels", 1))
    parameters = trainer.roles.parameters("student")
    found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return found


def warmed(trainers: dict[str, Trainer]) -> dict[str, str]:
    """Each way's distance from the default's gradients, after one gradient and one update."""
    apart: dict[str, str] = {}
    for name, trainer in trainers.items():
        _, _, inside, same = WAYS[name]
        started = time.perf_counter()
        with inside():
            gradient = student_gradient(trainer)
            trainer.update()
        first = time.perf_counter() - started
        if name == DEFAULT:
            expected = gradient
        distance = float((gradient - expected).norm() / expected.norm()) if same else 0.0
        apart[name] = f"{distance:.0e}" if same else "another result"
        print(f"{name}: {first:.0f} s to begin, {counted()}", file=sys.stderr, flush=True)
    return apart


def measure(size: int, repeats: int, only: list[str]) -> None:
    """Print the table of the default and of the ways asked for."""
    chosen = {n: w for n, w in WAYS.items() if n == DEFAULT or any(text in n for text in only)}
    trainers = {name: prepared(way[0], way[1], size) for name, way in chosen.items()}
    apart = warmed(trainers)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(repeats):
        for name, (_, _, inside, _) in chosen.items():
            with inside():
                started = time.perf_counter()
                trainers[name].update()
                times[name].append(time.perf_counter() - started)
        shown = {name: round(found[-1], 2) for name, found in times.items()}
        print(turn + 1, shown, file=sys.stderr, flush=True)
    print("| way | s per update (median) | ratio to the default, quartiles | gradients |")
    print("|---|---|---|---|")
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, times[DEFAULT], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        print(f"| {name} | {statistics.median(found):.1f} | {middle:.2f} ({low:.2f} to {high:.2f}) "
              f"| {apart[name]} |")  # fmt: skip


def profile(size: int) -> None:
    """Print the top operators of an update, before and after."""
    batches = Batches(size)
    baseline = ThreeCopies(make_call(), num_steps=4, anchor=ANCHOR, guidance=GUIDANCE)
    trainer = prepared({}, nothing, size)
    updates = {"three copies": lambda: baseline_update(baseline, batches), "ours": trainer.update}
    for name, update in updates.items():
        update()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            update()
        events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        print(f"\n{name}: {total / 1e6:.1f} s of operators, {FAKE_UPDATES} fake updates")
        for event in events[:8]:
            print(f"| {event.key} | {event.self_cpu_time_total / total:.1%} | {event.count} |")


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="latent side (64 is 512 pixels)")
    parser.add_argument("--repeats", type=int, default=5, help="2 or more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", metavar="TEXT", help="ways whose name holds it")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.profile:
        profile(options.size)
    else:
        measure(options.size, options.repeats, options.only or [""])


if __name__ == "__main__":
    main()

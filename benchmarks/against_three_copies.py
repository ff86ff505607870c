"""Memory and time of one update, student and fake score, against three full copies.

    python benchmarks/against_three_copies.py [--size 64] [--rank 16] [--repeats 5]

A random SD1-layout network of about 100 M parameters, batch 1, float32, the same attention kernels,
no_grad and batched guidance on both sides; text encoding is excluded on both. Figures are ratios
within one run of this script, of the medians over the repeats, taken in turn; the quartiles are
those of the ratio within one turn. The copies have 28 teacher steps and 5 fake updates, as the
published loop; so had ours by default before, and with `--no-share-rollouts` as many roll-outs.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import mounting  # noqa: F401
import torch
from diffusers import UNet2DConditionModel
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.core.diffusion.guidance import Guidance
from dpdmd_studio.core.diffusion.schedule import VPSchedule
from dpdmd_studio.core.families import family
from dpdmd_studio.trainer.distributed import joined
from dpdmd_studio.trainer.families import half_of
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from dpdmd_studio.trainer.model.network import NetworkCall, frozen_dtype
from dpdmd_studio.trainer.model.roles import AdapterRoles, RoleNetwork
from dpdmd_studio.trainer.training.batches import Batch, stream_generator
from dpdmd_studio.trainer.training.in_force import SettingsInForce
from dpdmd_studio.trainer.training.trainer import Trainer
from three_copies import ThreeCopies

WIDTHS, CONTEXT = (112, 224, 448, 448), 768
GUIDANCE, ANCHOR, FAKE_UPDATES = 7.5, 7, 5
BEFORE = {"teacher_steps": 28, "fake_updates": FAKE_UPDATES}
DEFAULT, BEFORE_NAME = "one network, default", "one network, default before"
WAYS = {
    f"{BEFORE_NAME}, separate roll-outs": BEFORE | {"share_rollouts": False},
    BEFORE_NAME: BEFORE,
    DEFAULT: {},
}


def make_call() -> NetworkCall:
    """A random SD1-layout denoiser."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=WIDTHS,
        cross_attention_dim=CONTEXT,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    network.eval().requires_grad_(False)
    half = half_of(family("sd1"))
    return NetworkCall(
        network, half, "eps", VPSchedule(), torch.device("cpu"), frozen_dtype(network)
    )


class Batches:
    """Random conditioning and noise, drawn as a run draws them."""

    def __init__(self, size: int, images: int = 1) -> None:
        self._shape = (images, 4, size, size)

    def generator(self, stream: str, step: int, index: int = 0) -> torch.Generator:
        """The random draws of one use."""
        return stream_generator(0, stream, step, index)

    def batch(self, stream: str, step: int, index: int = 0) -> Batch:
        """One update's inputs."""
        generator = self.generator(stream, step, index)
        noise = torch.randn(self._shape, generator=generator)
        size = (self._shape[0], 77, CONTEXT)
        texts = [torch.randn(size, generator=generator) for _ in range(2)]
        return Batch(noise, PromptPair(Conditioning(texts[0]), Conditioning(texts[1])))


def ours(call: NetworkCall, batches: Batches, rank: int, **settings: Any) -> Trainer:
    """This project's trainer at its default objective, an image an update."""
    config = DistillConfig(
        student_rank=rank, fake_rank=rank, batch_size=1, warmup_steps=0, **settings
    ).validate()
    modules = call.family.lora.modules(dict(call.network.config), config.lora_layers)
    roles = AdapterRoles(call.network, modules, student_rank=rank, fake_rank=rank, seed=0)
    settings_in_force = SettingsInForce(config, Guidance(GUIDANCE))
    network = RoleNetwork(call, roles)
    return Trainer(network, batches, settings_in_force, joined())  # type: ignore[arg-type]


def baseline_update(baseline: ThreeCopies, batches: Batches) -> None:
    """One student update and its fake updates, each with fresh inputs."""
    batch = batches.batch("student", 1)
    baseline.student_update(batch.noise, [batch.prompts.conditional, batch.prompts.unconditional])
    for index in range(FAKE_UPDATES):
        batch = batches.batch("fake", 1, index)
        baseline.fake_update(batch.noise, [batch.prompts.conditional, batch.prompts.unconditional])


def peak(update: Callable[[], Any], resident: Callable[[], list[torch.Tensor]]) -> int:
    """Peak live bytes of one warmed-up update."""
    update()
    gc.collect()
    with LiveBytes(resident()) as counter:
        update()
    return counter.peak


def trainer_tensors(trainer: Trainer) -> list[torch.Tensor]:
    """Everything resident between updates of our trainer."""
    found: list[torch.Tensor] = list(trainer.network.call.network.parameters())
    for optimizer in trainer.optimizers.values():
        found += [t for s in optimizer.state.values() for t in s.values()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="latent side (64 is 512 pixels)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batches = Batches(arguments.size)
    baseline = ThreeCopies(make_call(), num_steps=4, anchor=ANCHOR, guidance=GUIDANCE)
    trainers = {
        name: ours(make_call(), batches, arguments.rank, **settings)
        for name, settings in WAYS.items()
    }
    updates: dict[str, Callable[[], Any]] = {
        "three copies": lambda: baseline_update(baseline, batches)
    }
    updates |= {name: trainer.update for name, trainer in trainers.items()}
    residents = {"three copies": baseline.tensors} | {
        name: (lambda t=trainer: trainer_tensors(t)) for name, trainer in trainers.items()
    }
    peaks = {name: peak(update, residents[name]) for name, update in updates.items()}
    times: dict[str, list[float]] = {name: [] for name in updates}
    for turn in range(arguments.repeats):
        for name, update in updates.items():
            started = time.perf_counter()
            update()
            times[name].append(time.perf_counter() - started)
        print(turn + 1, {name: round(found[-1], 2) for name, found in times.items()},
              file=sys.stderr, flush=True)  # fmt: skip
    parameters = sum(p.numel() for p in baseline.teacher.network.parameters())
    print(
        f"{parameters / 1e6:.0f} M parameters, latent side {arguments.size}, batch 1, "
        f"rank {arguments.rank}, {arguments.threads} threads, torch {torch.__version__}"
    )
    print()
    print("| loop | peak live MiB | ratio | s per update (median) | ratio | quartiles |")
    print("|---|---|---|---|---|---|")
    base = statistics.median(times["three copies"])
    for name in updates:
        seconds = statistics.median(times[name])
        ratios = [a / b for a, b in zip(times[name], times["three copies"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        print(f"| {name} | {peaks[name] / 2**20:.0f} | {peaks[name] / peaks['three copies']:.2f} "
              f"| {seconds:.1f} | {seconds / base:.2f} | {low:.2f} to {high:.2f} |")  # fmt: skip
    ratios = [a / b for a, b in zip(times[DEFAULT], times[BEFORE_NAME], strict=True)]
    print(f"\nThe default's time, of the default's before: {statistics.median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()

"""Where plain DMD loses diversity, and what DP-DMD keeps of it, on a two-dimensional mixture.

    python benchmarks/collapse/mixture.py --folder F [--quick]

The project's own distiller, losses, roll-outs and update loop on a small network in place of a
diffusion model. Four objectives with the same budget, noise and settings: plain DMD, its gradient
detached at the first step, the diversity loss without the detach, and DP-DMD. The learning rate is
the one at which plain DMD comes nearest to its teacher, on a seed that is not reported. Runs that
are in the folder are not made again; tables and curves go to `--results`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mounting
import torch
from collapse_pages import write_pages
from torch import Tensor
from world import CLASSES, NULL, ClassLabels, Denoiser, Mixture, Roles, measured, mixture

OBJECTIVES = ("dmd", "detach_only", "no_detach", "dp_dmd")
GUIDANCE = (2.0, 4.0, 6.0)
RATES = (3e-4, 1e-3, 2e-3)
TUNING_SEED, SEEDS = 100, (0, 1, 2)
TEACHER_UPDATES, TEACHER_BATCH, DROPPED = 8000, 512, 0.1
UPDATES, BATCH, EVALUATIONS, SAMPLES = 4000, 256, 20, 1000
FLOW_SHIFT = 1.0
"""Two numbers have no redundancy that would call for a shift to more noise."""
CHANGES: dict[str, dict] = {
    "two anchored steps": {"num_anchored_steps": 2},
    "three anchored steps": {"num_anchored_steps": 3},
    "diversity weight .01": {"diversity_weight": 0.01},
    "diversity weight .2": {"diversity_weight": 0.2},
    "diversity weight 1": {"diversity_weight": 1.0},
    "anchor after 3 of 28 steps": {"anchor_step": 3},
    "anchor after 14 of 28 steps": {"anchor_step": 14},
    "gradient through the last step": {"gradient_steps": "last"},
    "gradient through all steps": {"gradient_steps": "all"},
    "1 fake update": {"fake_updates": 1},
    "10 fake updates": {"fake_updates": 10},
    "200 fake updates first": {"fake_head_start": 200},
    "fresh roll-outs for the fake": {"share_rollouts": False},
    "moving average .99": {"ema_decay": 0.99},
}


def trained_teacher(world: Mixture, folder: Path, updates: int) -> Denoiser:
    """A denoiser of the mixture by flow matching, or the one in the folder."""
    path = folder / f"teacher-{updates}.pt"
    teacher = Denoiser()
    if path.exists():
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return teacher
    torch.manual_seed(0)
    teacher = Denoiser()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=2e-3, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        classes = torch.randint(CLASSES, (TEACHER_BATCH,), generator=generator)
        x0 = world.draw(classes, generator)[:, :, None, None]
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.rand(TEACHER_BATCH, generator=generator)
        dropped = torch.rand(TEACHER_BATCH, generator=generator) < DROPPED
        x_t = torch.lerp(x0, eps, t[:, None, None, None])
        output = teacher(x_t, 1000 * t, torch.where(dropped, NULL, classes))
        loss = (output - (eps - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    torch.save(teacher.state_dict(), path)
    return teacher


class Batches:
    """Noise and classes of every update, as functions of seed and step."""

    def __init__(self, config) -> None:
        self.config = config

    def generator(self, stream: str, step: int, index: int = 0) -> torch.Generator:
        """The random draws of one use at one step."""
        from dpdmd_studio.trainer.training.batches import stream_generator

        return stream_generator(self.config.seed, stream, step, index)

    def batch(self, stream: str, step: int, index: int = 0):
        """Start noise and classes of one update."""
        from dpdmd_studio.trainer.method.distiller import Batch

        generator = self.generator(f"{stream}-batch", step, index)
        noise = torch.randn(self.config.batch_size, 2, 1, 1, generator=generator)
        labels = torch.randint(CLASSES, (len(noise),), generator=generator)
        return Batch(noise, ClassLabels(labels), ClassLabels(torch.full_like(labels, NULL)))


def start(seed: int) -> tuple[Tensor, Tensor]:
    """Noise (B, 2, 1, 1) and classes (B,) that every evaluation begins with."""
    generator = torch.Generator().manual_seed(900_000 + seed)
    classes = torch.arange(CLASSES).repeat_interleave(SAMPLES)
    return torch.randn(len(classes), 2, 1, 1, generator=generator), classes


@torch.no_grad()
def samples(distiller, role: str, noise: Tensor, classes: Tensor) -> Tensor:
    """Points (B, 2) drawn by the teacher on its own grid, or by the student on its own."""
    from dpdmd_studio.trainer.method.distiller import Batch
    from dpdmd_studio.trainer.method.rollout import roll

    labels = ClassLabels(classes)
    batch = Batch(noise, labels, ClassLabels(torch.full_like(classes, NULL)))
    levels = distiller.teacher_levels if role == "teacher" else distiller.levels
    end = roll(
        lambda x, level: distiller.denoise_as(role, batch, x, level),
        noise,
        levels,
        0,
        levels.num_steps,
    )
    return end.flatten(1)


def distilled(world: Mixture, teacher: Denoiser, config) -> dict:
    """One run: measures along the way, and of its teacher from other noise."""
    from dpdmd_studio.core.diffusion.schedule import FlowSchedule
    from dpdmd_studio.trainer.method.distiller import Distiller
    from dpdmd_studio.trainer.training.loop import Trainer

    started = time.perf_counter()
    roles = Roles(teacher, FlowSchedule(FLOW_SHIFT))
    distiller = Distiller(roles, roles, config, config.teacher_guidance)  # type: ignore[arg-type]
    trainer = Trainer(distiller, roles, Batches(config), config, "")  # type: ignore[arg-type]
    noise, classes = start(config.seed)
    theirs = samples(distiller, "teacher", noise, classes)
    every, curve = max(1, config.steps // EVALUATIONS), []
    trainer.head_start()
    while trainer.step < config.steps:
        trainer.update()
        if trainer.step % every == 0:
            kept = roles.state("student")
            roles.load_state("student", trainer.student_weights())
            ours = samples(distiller, "student", noise, classes)
            roles.load_state("student", kept)
            curve.append({"step": trainer.step, **measured(world, ours, theirs, classes)})
    again, _ = start(config.seed + 50)
    other = samples(distiller, "teacher", again, classes)
    return {
        "teacher": measured(world, other, theirs, classes),
        "curve": curve,
        "seconds": round(time.perf_counter() - started, 1),
    }


class Runs:
    """Runs that are made once and kept in the folder."""

    def __init__(self, folder: Path, updates: int, teacher_updates: int, total: int) -> None:
        from dpdmd_studio.app.config.distill_config import DistillConfig

        self.folder, self.world = folder, mixture()
        self.teacher = trained_teacher(self.world, folder, teacher_updates)
        self.base = DistillConfig(
            steps=updates, batch_size=BATCH, evaluation_prompts=0, ema_decay=0.0
        )
        self._total, self._made, self._started = total, 0, time.perf_counter()

    def path(self, guidance: float, rate: float, seed: int, objective: str, name: str = "") -> Path:
        """Where a run's result is kept."""
        stem = f"{objective}-g{guidance:g}-r{rate:g}-s{seed}-{self.base.steps}-{name}"
        return self.folder / f"{stem.strip('-').replace(' ', '_')}.json"

    def get(self, guidance: float, rate: float, seed: int, objective: str, name: str = "") -> dict:
        """A run's result; `name` is a change of `CHANGES`."""
        path = self.path(guidance, rate, seed, objective, name)
        if path.exists():
            self._total -= 1
            return json.loads(path.read_text())
        settings = {"teacher_guidance": guidance, "student_lr": rate, "fake_lr": rate}
        config = replace(self.base, seed=seed, objective=objective, **settings)
        result = distilled(self.world, self.teacher, replace(config, **CHANGES.get(name, {})))
        path.write_text(json.dumps(result))
        self._made += 1
        left = (time.perf_counter() - self._started) / self._made * (self._total - self._made)
        sys.stderr.write(f"{path.stem}: {result['curve'][-1]} ({left / 60:.0f} min left)\n")
        return result


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=mounting.ROOT / "benchmarks" / "results")
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--changes", nargs="*", metavar="NAME", choices=CHANGES, default=(),
                        help="DP-DMD with these changes as well, one at a time")  # fmt: skip
    parser.add_argument("--changes-at", type=float, nargs="+", metavar="GUIDANCE",
                        help="only at these (default: at all)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a few updates: does it run?")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    updates, teacher_updates = (20, 20) if options.quick else (UPDATES, TEACHER_UPDATES)
    seeds, rates = (SEEDS[:1], RATES[:1]) if options.quick else (SEEDS, RATES)
    count = len(options.guidance) * (len(rates) + len(OBJECTIVES) * len(seeds))
    changes_at = options.changes_at or options.guidance
    count += len(options.changes) * len(changes_at) * len(seeds)
    runs = Runs(options.folder, updates, teacher_updates, count)
    chosen, found, tuning = {}, {}, {}
    for guidance in options.guidance:
        tried = {rate: runs.get(guidance, rate, TUNING_SEED, "dmd") for rate in rates}
        tuning[guidance] = {rate: run["curve"][-1] for rate, run in tried.items()}
        chosen[guidance] = min(rates, key=lambda r, t=tuning[guidance]: t[r]["distance"])
        for objective in OBJECTIVES:
            found[guidance, objective] = [
                runs.get(guidance, chosen[guidance], seed, objective) for seed in seeds
            ]
    asked = {(guidance, name) for name in options.changes for guidance in changes_at}
    changes = {
        (guidance, name): [
            runs.get(guidance, chosen[guidance], seed, "dp_dmd", name) for seed in seeds
        ]
        for guidance in options.guidance
        for name in CHANGES
        if (guidance, name) in asked
        or all(runs.path(guidance, chosen[guidance], s, "dp_dmd", name).exists() for s in seeds)
    }
    write_pages(options.results, found, chosen, tuning, changes, updates)


if __name__ == "__main__":
    main()

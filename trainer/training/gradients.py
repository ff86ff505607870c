"""The gradients of one update, in micro-batches: where training meets the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.diffusion.schedule import Levels
from ..device import to_device
from ..distributed import Ranks
from ..method.dp_dmd import Metrics, Network, fake_update, student_samples, student_update
from ..method.objective import Draws, draw, draw_for_fake, draw_supervised_step
from ..model.roles import RoleNetwork
from .batches import Batch
from .in_force import SettingsInForce


@dataclass(frozen=True)
class Samples:
    """This process's student samples x0 (B, C, H, W) of a batch, detached, for the fake score."""

    x0: Tensor
    batch: Batch


class Gradients:
    """Adds this process's share of an update's gradients to the adapters.

    Of a batch, the process takes its own rows, `micro_batch_size` at a time. Every part takes its
    rows of the whole batch's draws, so the draws do not depend on the parts.
    """

    def __init__(self, network: RoleNetwork, settings: SettingsInForce, ranks: Ranks) -> None:
        """Args:
        settings: asked for anew by each update, since a memory fallback changes them.
        ranks: the processes of this run.
        """
        self.network, self.settings, self.ranks = network, settings, ranks
        self.device = network.call.device
        self.grids = settings.grids(network.call.schedule).map(self._to_device)

    def student(
        self, batch: Batch, generator: torch.Generator, step: int | None = None
    ) -> tuple[Metrics, Samples]:
        """Add a student update's gradients, in micro-batches; returns metrics and samples.

        Args:
            step: which update it is, from 1; None is a late one.
        """
        objective = self.settings.objective(step)
        draws = draw(objective, self.grids, tuple(batch.noise.shape), generator)

        def part(network: Network, rows: slice) -> tuple[Metrics, Tensor]:
            own = self._moved(draws[rows])
            return student_update(network, batch.noise[rows], own, objective, self.grids)

        metrics, x0 = self._in_parts(batch, part)
        return metrics, Samples(x0, batch)

    @torch.no_grad()
    def samples(self, batch: Batch, generator: torch.Generator) -> Samples:
        """Student samples of a batch for the fake score."""
        objective = self.settings.objective()
        supervised = draw_supervised_step(objective, self.grids, generator)

        def part(network: Network, rows: slice) -> tuple[Metrics, Tensor]:
            noise = batch.noise[rows]
            return {}, student_samples(network, noise, supervised, objective, self.grids)

        _, x0 = self._in_parts(batch, part)
        return Samples(x0, batch)

    def fake(self, samples: Samples, generator: torch.Generator) -> Metrics:
        """Add a fake-score update's gradients, in micro-batches; returns metrics."""
        batch = samples.batch
        draws = draw_for_fake(self.grids, tuple(batch.noise.shape), generator)
        first = self.ranks.own_rows(len(batch)).start

        def part(network: Network, rows: slice) -> tuple[Metrics, Tensor]:
            x0 = samples.x0[rows.start - first : rows.stop - first]
            return fake_update(network, x0, self._moved(draws[rows])), x0

        metrics, _ = self._in_parts(batch, part)
        return metrics

    def _in_parts(
        self, batch: Batch, update: Callable[[Network, slice], tuple[Metrics, Tensor]]
    ) -> tuple[Metrics, Tensor]:
        """An update of this process's rows, `micro_batch_size` at a time (0: all at once).

        All losses are means over the batch, so each part's counts by its share. Metrics are the
        parts' means; `anchor_error`, a ratio of roots, is one only nearly.
        """
        own, count = self.ranks.own_rows(len(batch)), len(batch)
        size = self.settings.config.micro_batch_size or count
        total: Metrics = {}
        samples = []
        for start in range(own.start, own.stop, size):
            rows = slice(start, min(start + size, own.stop))
            part = rows.stop - rows.start
            network = self.network.bound(batch.prompts.index(rows), part, of=count)
            metrics, x0 = update(network, rows)
            samples.append(x0)
            for name, value in metrics.items():
                weighted = value * (part / (own.stop - own.start))
                total[name] = total.get(name, torch.zeros_like(value)) + weighted
        return total, torch.cat(samples)

    def _moved(self, draws: Draws) -> Draws:
        """Draws on the device; the levels in one copy."""
        level = draws.level
        table = torch.stack([level.sigmas, level.alphas, level.stds, level.timesteps])
        noise = self._to_device(draws.noise)
        return Draws(draws.supervised, Levels(*self._to_device(table)), noise, draws.guided)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self.device)

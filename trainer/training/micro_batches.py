"""Updates of a batch in parts: less memory, the same gradients up to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...core.diffusion.schedule import Levels
from ..device import to_device
from ..distributed import joined
from ..method.distiller import Batch, Distiller, Metrics, Samples
from ..model.conditioning import Conditioning


class MicroBatchDistiller(Distiller):
    """A distiller whose updates take `micro_batch_size` pictures at a time (0: all at once).

    Of a run in several processes, each takes its own rows of the batch; `Samples.x0` are those.

    All losses are means over the batch, so each part's counts by its share. Every part draws the
    whole batch's random numbers and takes its own rows: the draws do not depend on the parts.
    Metrics are means over the parts; `anchor_error`, a ratio of roots, is one only nearly.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Args:
        arguments, named: those of `Distiller`.
        """
        super().__init__(*arguments, **named)
        self.micro_batch_size = self.config.micro_batch_size
        self._own_rows = joined().own_rows
        self._rows, self._whole = slice(None), 0

    def student_update(self, batch: Batch, generator: torch.Generator) -> tuple[Metrics, Samples]:
        """As `Distiller.student_update`."""
        metrics, x0, state = [], [], generator.get_state()
        for rows in self._parts(len(batch.noise)):
            with self._part(rows, len(batch.noise)):
                found, samples = super().student_update(
                    _rows(batch, rows), generator.set_state(state)
                )
            metrics.append(found)
            x0.append(samples.x0)
        return _mean(metrics, x0), Samples(torch.cat(x0), batch)

    def fake_update(self, samples: Samples, generator: torch.Generator) -> Metrics:
        """As `Distiller.fake_update`."""
        metrics, x0, state = [], [], generator.get_state()
        count = len(samples.batch.noise)
        first = self._own_rows(count).start
        for rows in self._parts(count):
            x0.append(samples.x0[rows.start - first : rows.stop - first])
            part = Samples(x0[-1], _rows(samples.batch, rows))
            with self._part(rows, count):
                metrics.append(super().fake_update(part, generator.set_state(state)))
        return _mean(metrics, x0)

    @torch.no_grad()
    def draw_samples(self, batch: Batch, generator: torch.Generator) -> Samples:
        """As `Distiller.draw_samples`."""
        x0, state = [], generator.get_state()
        for rows in self._parts(len(batch.noise)):
            with self._part(rows, len(batch.noise)):
                part = super().draw_samples(_rows(batch, rows), generator.set_state(state))
            x0.append(part.x0)
        return Samples(torch.cat(x0), batch)

    def _parts(self, count: int) -> list[slice]:
        """Rows of each part of this process's share of the batch."""
        own = self._own_rows(count)
        size = self.micro_batch_size or count
        starts = range(own.start, own.stop, size)
        return [slice(start, min(start + size, own.stop)) for start in starts]

    @contextmanager
    def _part(self, rows: slice, count: int) -> Iterator[None]:
        """Draws and losses are those of these rows of the batch."""
        scale = self.loss_scale
        self._rows, self._whole = rows, count
        self.loss_scale = scale * (rows.stop - rows.start) / count
        try:
            yield
        finally:
            self.loss_scale = scale
            self._rows, self._whole = slice(None), 0

    def _draw_levels(self, low: int, high: int, count: int, generator: torch.Generator) -> Levels:
        whole = super()._draw_levels(low, high, self._whole or count, generator)
        return whole[torch.arange(len(whole.sigmas), device=whole.sigmas.device)[self._rows]]

    def _randn_like(self, x: Tensor, generator: torch.Generator) -> Tensor:
        shape = (self._whole or len(x), *x.shape[1:])
        return to_device(torch.randn(shape, generator=generator)[self._rows], x.device)


def _mean(metrics: list[Metrics], parts: list[Tensor]) -> Metrics:
    """Means of the parts' metrics, weighted by their sizes."""
    count = sum(len(part) for part in parts)
    total: Metrics = {}
    for part, found in zip(parts, metrics, strict=True):
        for name, value in found.items():
            total[name] = total.get(name, torch.zeros_like(value)) + value * (len(part) / count)
    return total


def _rows(batch: Batch, rows: slice) -> Batch:
    """Those rows of a batch."""

    def part(conditioning: Conditioning) -> Conditioning:
        return conditioning.index(rows)

    return Batch(batch.noise[rows], part(batch.conditional), part(batch.unconditional))

"""A head for the training alone: it has to name what a noisy picture shows.

So the features by which a denoiser decides what an open caption becomes form early.
"""

from __future__ import annotations

from dpdmd_studio.trainer.toys.emoji import captions
from torch import Tensor, nn
from torch.nn import functional

from .bank import Batch

NAMING_WEIGHT = 0.03
"""Of the head's cross-entropy in a teacher's loss."""


class NamingHead(nn.Linear):
    """Name and style, linear in the mean over tokens of `features`, (N, L, D)."""

    features: Tensor

    def __init__(self, width: int) -> None:
        here = captions.world()
        self.sizes = (len(here.names), len(here.styles))
        super().__init__(width, sum(self.sizes))

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of name and of style, added."""
        pooled = self.features.float().mean(1)
        read = self(functional.layer_norm(pooled, pooled.shape[1:]))
        names, styles = read.split(self.sizes, dim=1)
        return functional.cross_entropy(names, batch.names) + functional.cross_entropy(
            styles, batch.styles
        )

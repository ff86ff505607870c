"""Whether a checkpoint's few plain steps look like its guided ones, so that it needs no distilling.

An ordinary checkpoint draws mush in four steps without guidance; one that is a few-step model
already draws the image that it is made for. Both are drawn from the same noise and compared in the
layout of colours and edges, which does not mind the contrast that guidance adds. Two students of an
embedded teacher were a quarter as far from their guided steps as seeds from each other, and the
teachers themselves a tenth, being simple enough for four steps. No larger model was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np

from ...core.images.diversity import layout_vectors, sample_diversity

NO_VARIETY = 1e-4
"""Images of several seeds that are nearer than this tell nothing."""
Rows = Sequence[Sequence[np.ndarray]]
"""Images by [prompt][seed], uint8, (H, W, 3)."""


def distance_share(guided: Rows, plain: Rows) -> float | None:
    """How far plain images are from guided ones of the same noise, as a share of that of seeds.

    None where the guided ones are alike from seed to seed, or there is one of each prompt.
    """
    pairs = [(layout_vectors(a), layout_vectors(b)) for a, b in zip(guided, plain, strict=True)]
    if any(len(own) < 2 for own, _ in pairs):
        return None
    seeds = mean(sample_diversity(own) for own, _ in pairs)
    apart = mean(1 - float((own * other).sum(dim=1).mean()) for own, other in pairs)
    return apart / seeds if seeds > NO_VARIETY else None

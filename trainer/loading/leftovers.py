"""What a checkpoint file holds beyond the tensors in use: known extras pass, the rest is listed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...core.families import family
from .parts import Parts
from .weights import Component

KNOWN_EXTRAS = re.compile(
    r"^model_ema\."
    r"|(^|\.)(position_ids|logit_scale|spiece_model|tokenizer_json)$"
    r"|^(betas|logvar|lvlb_weights|alphas_cumprod(_prev)?|posterior_\w+|log_one_minus_\w+|sqrt_\w+)$"
    r"|^denoiser\.(sigmas|log_sigmas)$|^model_sampling\.\w+$"
    r"|^(v_pred|ztsnr|dpdmd_text_encoder\.token_ids)$"
    r"|^first_stage_model\."  # previews need a part of it only
    r"|^(cond_stage_model|conditioner\.embedders\.\d|text_encoders\.\w+)\..*"
    r"(text_projection(\.weight)?|embed_tokens\.weight)$"
)
NAMES_SHOWN = 5


def describe_leftovers(parts: Parts, encoders: Mapping[str, Component]) -> list[str]:
    """One line about unknown tensors in a single file, or none."""
    if parts.file is None:
        return []
    used = parts.denoiser.used()
    for component in encoders.values():
        used |= component.used()
    unused_prefixes = tuple(
        prefix
        for kind, prefixes in family(parts.detection.family).text.prefixes.items()
        if kind not in encoders
        for prefix in prefixes
    )
    unknown = [
        name
        for name in parts.file.tensors
        if name not in used
        and not KNOWN_EXTRAS.search(name)
        and not name.startswith(unused_prefixes or ("\0",))
    ]
    if not unknown:
        return []
    shown = ", ".join(unknown[:NAMES_SHOWN])
    more = f" and {len(unknown) - NAMES_SHOWN} more" if len(unknown) > NAMES_SHOWN else ""
    return [f"{len(unknown)} unknown tensors in the file are ignored: {shown}{more}."]

"""How the names of a LoRA's tensors end: the parts that are read here, and kinds that are not.

By these endings a file is known as a LoRA at all, wherever one asks.
"""

from __future__ import annotations

import re

# Each way to end a key, and the part of the update it names.
SUFFIXES = {
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".alpha": "alpha",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("t1", "t2")},
}
# PEFT puts the adapter's name in between, whatever the trainer called it.
ADAPTER = re.compile(r"\.lora_(A|B|down|up|mid)\.([^.]+)\.weight$")
ADAPTER_PARTS = {"A": "down", "down": "down", "B": "up", "up": "up", "mid": "mid"}
OTHER_KINDS = {
    "DoRA": r"\.(dora_scale|lora_magnitude_vector(\.[^.]+)?(\.weight)?)$",
    "OFT": r"\.(oft_blocks|oft_diag|oft_R(\.[^.]+)?(\.weight)?)$",
    "BOFT": r"\.boft_[Rs](\.[^.]+)?$",
    "GLoRA": r"^(lora|lycoris)_.*\.[ab][12]\.weight$",
    "IA3": r"\.(on_input|ia3_l(\.[^.]+)?)$",
    "VeRA": r"\.vera_lambda_[bd](\.[^.]+)?$",
    "replaced weights": r"\.(set_weight|reshape_weight)$",
    "LoRA with biases": r"\.lora_(B|up)(\.[^.]+)?\.bias$",
    "LoRA of embeddings": r"\.lora_embedding_[AB](\.[^.]+)?$",
    "control LoRA": r"^lora_controlnet$",
    "LoRA with numbered layers": (
        r"^((unet|text_encoder):\d+:(up|down)|weights\.\d+\.lora_(up|down))$"
    ),
    "LoRA with numbered halves": (
        r"\.lora_[AB]_\d+(\.[^.]+)?\.weight$|\.lora_(down|up)\.\d+\.weight$"
    ),
    "LoRA as diffusers 0.15 changed text encoders": (
        r"\.self_attn\.\w+_proj\.to_(q|k|v|out)_lora\.(down|up)\.weight$"
    ),
}
EARLY_ENCODER = re.compile(OTHER_KINDS["LoRA as diffusers 0.15 changed text encoders"])
ENDINGS = "|".join(re.escape(ending) for ending in SUFFIXES if ending != ".alpha")
LORA_KEY = re.compile("|".join([f"({ENDINGS})$", ADAPTER.pattern, *OTHER_KINDS.values()]))
"""Finds itself in a key by which a file is a LoRA, of whatever kind."""


def split_suffix(key: str) -> tuple[str, str, str]:
    """(module as written, part of the update, adapter's name or "") of a key.

    The part is "" if the ending is not known.
    """
    if EARLY_ENCODER.search(key):
        return key, "", ""
    for ending, part in SUFFIXES.items():
        if key.endswith(ending):
            return key[: -len(ending)], part, ""
    found = ADAPTER.search(key)
    if found is None or (found[1] in ("down", "up") and found[2].isdigit()):
        return key, "", ""  # sd-scripts numbers the halves of q, k and v in one module so
    return key[: found.start()], ADAPTER_PARTS[found[1]], found[2]


def other_kind(key: str) -> str:
    """The kind of update that is recognised, and not handled, by a key; "" for none."""
    return next((kind for kind, pattern in OTHER_KINDS.items() if re.search(pattern, key)), "")

"""Golden LoRA names of the real architectures; `python tests/lora_goldens.py` rewrites them.

The lists are folded to stay small: names that differ in their numbers alone become one pattern, and
patterns with the same numbers share them.
"""

import importlib
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

FOLDER = Path(__file__).parent / "goldens"
UNET = {
    "sample_size": 64,
    "layers_per_block": 2,
    "in_channels": 4,
    "out_channels": 4,
}
SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
}
ARCHITECTURES = {
    "sd15": (
        "sd1",
        {
            **UNET,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
    ),
    "sdxl": (
        "sdxl",
        {
            **UNET,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
            "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "sd3-medium": ("sd3", {**SD3, "pos_embed_max_size": 192}),
    "sd35-medium": (
        "sd3",
        {
            **SD3,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "sd35-large": (
        "sd3",
        {
            **SD3,
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "zimage": (
        "zimage",
        {
            "dim": 3840,
            "n_layers": 30,
            "n_heads": 30,
            "cap_feat_dim": 2560,
            "axes_dims": [32, 48, 48],
        },
    ),
    "anima": (
        "anima",
        {
            "in_channels": 17,
            "out_channels": 16,
            "num_attention_heads": 16,
            "attention_head_dim": 128,
            "num_layers": 28,
            "mlp_ratio": 4,
            "text_embed_dim": 1024,
            "adaln_lora_dim": 256,
        },
    ),
}


def build(name):
    """(network without memory, family, config) of a real architecture."""
    import torch
    from dpdmd_studio.trainer.families import half_of

    family, config = family_and_config(name)
    with torch.device("meta"):
        network = half_of(family).network(**config)
    return network, family, dict(network.config)


def family_and_config(name):
    """(family, config) of a real architecture."""
    from dpdmd_studio.core import families

    family_name, config = ARCHITECTURES[name]
    return families.family(family_name), config


def names(name):
    """Every name that a LoRA of all targets has in the file, without its suffix."""
    family, config = family_and_config(name)
    modules = family.lora.modules(config, "full")
    return sorted({family.lora_key(module, config).name for module in modules})


def fold(found):
    """Names as [{numbers: [...], patterns: [...]}]."""
    numbers_of = defaultdict(list)
    for name in found:
        numbers_of[re.sub(r"(?<=[_.])\d+(?=[_.]|$)", "#", name)].append(
            " ".join(re.findall(r"(?<=[_.])\d+(?=[_.]|$)", name))
        )
    groups = defaultdict(list)
    for pattern, numbers in numbers_of.items():
        groups[", ".join(sorted(numbers, key=lambda n: [int(x) for x in n.split()]))].append(
            pattern
        )
    return [{"numbers": n, "patterns": sorted(p)} for n, p in groups.items()]


def unfold(groups):
    """The names that `fold` was given, sorted."""
    found = []
    for group in groups:
        for numbers in group["numbers"].split(", "):
            for pattern in group["patterns"]:
                values = iter(numbers.split())
                found.append(re.sub("#", lambda _, values=values: next(values), pattern))
    return sorted(found)


def read(name):
    """The golden list."""
    return unfold(json.loads((FOLDER / f"lora-names-{name}.json").read_text())["names"])


def write():
    """Rewrite every golden list from the package as it is."""
    FOLDER.mkdir(exist_ok=True)
    for name in ARCHITECTURES:
        found = names(name)
        content = {"rewrite": "python tests/lora_goldens.py", "count": len(found)}
        content["names"] = fold(found)
        assert unfold(content["names"]) == found
        (FOLDER / f"lora-names-{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module("conftest")  # makes dpdmd_studio importable
    write()

"""What an update of SD1.5, SDXL and SD3.5-medium needs on every rung, counted and by arithmetic.

    python benchmarks/memory_bars.py [--families sd1 sdxl sd3]

Real layouts in bfloat16, batch 1, rank 64, all layers, four steps, at each family's own
resolution. Counted is what `estimate` counts (fake tensors, the bytes alive at the worst moment);
the arithmetic is what a run fits its settings to the card by. An allocator and a driver take more.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.estimate import COSTS, arithmetic_memory
from dpdmd_studio.core.families import family
from dpdmd_studio.core.families.base import Detection
from dpdmd_studio.trainer.memory.update_memory import update_memory
from full_size_loading import SD35_MEDIUM, SDXL

GIB = 2**30
SIDES = {"sd1": 512, "sdxl": 1024, "sd3": 1024}
TOKENS = {"sd1": 77, "sdxl": 77, "sd3": 333}
CHECKPOINTED = DistillConfig(gradient_checkpointing=True, dtype="bfloat16")
MOVED = replace(CHECKPOINTED, offload_optimizer=True)
RUNGS = {
    "gradient checkpointing": CHECKPOINTED,
    "and 8-bit optimizer": replace(CHECKPOINTED, optimizer="adamw8bit"),
    "and moments in CPU memory": MOVED,
    "and int8 base": replace(MOVED, base_weights="int8"),
    "and base in CPU memory": replace(MOVED, base_weights="int8", offload_base=True),
    "as set": replace(CHECKPOINTED, gradient_checkpointing=False),
}


def empty_network(name: str) -> torch.nn.Module:
    """A network of the real layout without numbers."""
    with torch.device("meta"):
        if name == "sd3":
            return SD3Transformer2DModel(**SD35_MEDIUM)
        return UNet2DConditionModel(**(SDXL if name == "sdxl" else {"cross_attention_dim": 768}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(SIDES), choices=list(SIDES))
    print("| family | pixels | settings | base | adapters | moments | gradients | activations "
          "| counted GiB | arithmetic GiB | ratio |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in parser.parse_args().families:
        side, facts = SIDES[name], family(name)
        latent = (16 if name == "sd3" else 4, side // 8, side // 8)
        detection = Detection(name, "", facts.predictions[0], latent[0], "", side, 8)  # type: ignore[arg-type]
        for title, config in RUNGS.items():
            found = update_memory(
                empty_network(name), facts, config, latent, torch.bfloat16, tokens=TOKENS[name]
            )
            reckoned = arithmetic_memory(detection, config, 2 * COSTS[detection.family].parameters)
            parts = (found.base, found.adapters, found.moments, found.gradients, found.activations)
            print(f"| {name} | {side} | {title} | "
                  + " | ".join(f"{value / GIB:.2f}" for value in (*parts, found.peak, reckoned))
                  + f" | {reckoned / found.peak:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

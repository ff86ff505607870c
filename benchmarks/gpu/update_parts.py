"""Whole updates: memory and seconds by setting, under caps, against three copies, and scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from layouts import (
    SIDES,
    TOKENS,
    Inputs,
    latent_shape,
    make_call,
    make_trainer,
    random_network,
    resident,
    settings,
)
from measuring import Options, Row, capped, peak, release, seconds
from scaling import variations
from three_copies import ThreeCopies

Cases = dict[str, Callable[[], Row]]
CHECKPOINTED = {"gradient_checkpointing": True}
EIGHT_BIT = {"optimizer": "adamw8bit"}
SEPARATE, SHARED = {"share_rollouts": False}, {"share_rollouts": True}
FAST = SHARED | {"teacher_steps": 8, "gradient_steps": "random"}
MEMORY_SETTINGS: dict[str, dict[str, Any]] = {
    "as set": {},
    "checkpointing": CHECKPOINTED,
    "checkpointing, 8-bit optimizer": CHECKPOINTED | EIGHT_BIT,
    "checkpointing, int8 base": CHECKPOINTED | {"base_weights": "int8"},
    "checkpointing, nf4 base": CHECKPOINTED | {"base_weights": "nf4"},
    "checkpointing, int8 base, 8-bit optimizer": CHECKPOINTED | EIGHT_BIT
    | {"base_weights": "int8"},
    "checkpointing, base offloaded": CHECKPOINTED | {"offload_base": True},
    "checkpointing, int8 base offloaded": CHECKPOINTED
    | {"base_weights": "int8", "offload_base": True},
    "int8 base offloaded, nothing recomputed": {"base_weights": "int8", "offload_base": True},
}  # fmt: skip
OTHER_SIDES = {"sd1": 768, "sdxl": 768, "sd3": 768}
# family, GiB, settings: the smallest cards that the project promises
CAPS: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("sdxl", 12.0, CHECKPOINTED),
    ("sdxl", 11.0, CHECKPOINTED),
    ("sdxl", 11.0, CHECKPOINTED | EIGHT_BIT),
    ("sdxl", 7.5, CHECKPOINTED | {"base_weights": "int8"}),
    ("sdxl", 7.5, CHECKPOINTED | EIGHT_BIT | {"base_weights": "int8"}),
    ("sdxl", 7.5, CHECKPOINTED | EIGHT_BIT | {"base_weights": "nf4"}),
    ("sd3", 12.0, CHECKPOINTED),
    ("sd1", 5.5, CHECKPOINTED),
)


def update_row(name: str, options: Options, side: int | None = None, **values: Any) -> Row:
    """Seconds and peak memory of one student update with its fake updates."""
    release(options)
    trainer = make_trainer(name, options, settings(options, **values), side)
    row = seconds(trainer.update, options)
    return row | peak(trainer.update, lambda: resident(trainer), options)


def memory_cases(name: str, options: Options) -> Cases:
    """All settings at the family's resolution, the first of them at another."""
    own, other = SIDES[name], OTHER_SIDES[name]
    many = [(own, memory) for memory in MEMORY_SETTINGS]
    many += [(other, memory) for memory in ("as set", "checkpointing")]
    return {
        f"{name}, {side}, {memory}": lambda s=side, r=memory: update_row(
            name, options, s, **MEMORY_SETTINGS[r]
        )
        for side, memory in many
    }


def cap_cases(options: Options) -> Cases:
    """Three student updates under a hard cap; a row says whether they were done."""

    def words(values: dict[str, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in values.items())

    def measured(name: str, gib: float, values: dict[str, Any]) -> Row:
        release(options)
        limit = gib * 2**30 if not options.tiny else 2**30
        config = settings(options, **values)
        with capped(limit, [], options):
            trainer = make_trainer(name, options, config)
            metrics = [trainer.update() for _ in range(3)]
        found = {"updates": len(metrics), "cap": limit}
        return found | (peak(trainer.update, lambda: resident(trainer), options))

    return {
        f"{name}, {gib} GiB, {words(values)}": lambda n=name, g=gib, v=values: measured(n, g, v)
        for name, gib, values in CAPS
    }


def copies_cases(name: str, options: Options) -> Cases:
    """Our update and that of three full networks: time as set, memory with checkpointing too."""
    ours = {"separate roll-outs": SEPARATE, "shared roll-outs": SHARED, "fast": FAST}
    cases: Cases = {}
    for recomputed in (False, True):
        suffix = ", checkpointing" if recomputed else ""
        values = CHECKPOINTED if recomputed else {}
        cases[f"{name}, three copies{suffix}"] = lambda r=recomputed: three_copies(name, options, r)
        for words, changed in ours.items():
            cases[f"{name}, {words}{suffix}"] = lambda v=changed | values: update_row(
                name, options, **v
            )
    return cases


def three_copies(name: str, options: Options, checkpointing: bool) -> Row:
    """The plain loop's row: the same kernels, number format, inputs and guidance."""
    release(options)
    config = settings(options, gradient_checkpointing=checkpointing)
    call = make_call(name, options, config)
    guidance = call.family.sampling.guidance_scale
    anchor = 1 if options.tiny else 7
    copies = ThreeCopies(call, num_steps=4, anchor=anchor, guidance=guidance)
    inputs = Inputs(call, latent_shape(name, options, config, None), options.number_format)

    def update() -> None:
        batch = inputs.batch("student", 1)
        copies.student_update(batch.noise, [batch.prompts.conditional, batch.prompts.unconditional])
        for index in range(config.fake_updates):
            batch = inputs.batch("fake", 1, index)
            copies.fake_update(
                batch.noise, [batch.prompts.conditional, batch.prompts.unconditional]
            )

    row = seconds(update, options)
    return row | peak(update, copies.tensors, options)


def scaling_cases(options: Options) -> Cases:
    """SDXL over batch, resolution, rank, N and K, one at a time."""
    groups = variations({f"resolution {side}": side for side in (512, 768, 1024)})
    many = {words: varied for group in groups.values() for words, varied in group.items()}
    return {
        f"sdxl, {words}": lambda s=side, v=values: update_row(
            "sdxl", options, s, **(CHECKPOINTED | v)
        )
        for words, (side, values) in many.items()
    }


def estimate_cases(options: Options) -> Cases:
    """The count that the estimate is fitted to, against the allocator's peak."""
    from count_memory import Model, count
    from dpdmd_studio.core.families import family

    def measured(name: str, memory: str) -> Row:
        config = settings(options, **MEMORY_SETTINGS[memory])
        row = update_row(name, options, **MEMORY_SETTINGS[memory])
        shape = latent_shape(name, options, config, None)
        model = Model(
            lambda: random_network(name, options, torch.device("meta")),
            family(name),
            shape[1:],
            options.number_format,
            TOKENS[name],
        )
        counted = count(model, config)
        return row | {"counted": counted.peak, "counted_share": counted.peak / row["allocated"]}

    chosen = ("as set", "checkpointing", "checkpointing, 8-bit optimizer",
             "checkpointing, int8 base")  # fmt: skip
    return {
        f"{name}, {memory}": lambda n=name, r=memory: measured(n, r)
        for name in SIDES
        for memory in chosen
    }

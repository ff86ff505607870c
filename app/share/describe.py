"""The description of a package: what it is, settings, measurements, limits, licence."""

from __future__ import annotations

from ...core.recipe.recipe import MergedLora
from .blocks import Block, Bullets, Heading, Link, Part, Table, paragraph
from .facts import PackageFacts
from .hosts import host_blocks, settings_table
from .labels import license_note
from .names import one_line

PAPER = Link("arXiv:2602.03139", "https://arxiv.org/abs/2602.03139")


def description(facts: PackageFacts) -> list[Block]:
    """Everything, in the order in which people read it."""
    blocks: list[Block] = [
        Heading(1, facts.title),
        paragraph(*what_it_is(facts)),
        Heading(2, "Settings"),
        settings_table(facts),
        Heading(2, "In your program"),
        *host_blocks(facts),
    ]
    if facts.measured is not None:
        blocks += _measured(facts)
    blocks += [Heading(2, "Limits"), Bullets(tuple((text,) for text in limits(facts)))]
    blocks += [Heading(2, "How it was made"), Bullets(tuple(_origin(facts)))]
    blocks += [Heading(2, "Licence"), paragraph(license_text(facts))]
    return blocks


def what_it_is(facts: PackageFacts) -> list[Part]:
    """The first paragraph."""
    recipe = facts.recipe
    method = recipe.objective.replace("_", "-").upper()
    parts: list[Part] = [
        f"A LoRA that lets {facts.teacher} draw in {recipe.num_steps} steps without guidance, "
        f"distilled from that checkpoint by {method}",
    ]
    if recipe.objective == "dp_dmd":
        parts += [
            " (Diversity-Preserved Distribution Matching Distillation, ", PAPER, "), which trains "
            "the first steps to keep the variety of the original and the others for quality.",
        ]  # fmt: skip
    else:
        parts.append(".")
    return parts


def summary(facts: PackageFacts) -> str:
    """One sentence for cards."""
    return f"{facts.recipe.num_steps}-step LoRA of {facts.teacher}, to be used without guidance."


def _measured(facts: PackageFacts) -> list[Block]:
    table = facts.measured
    assert table is not None
    return [
        Heading(2, "Diversity and speed"),
        paragraph(
            f"Measured on {table.prompts} prompts with {table.seeds} seeds each. Seconds are those "
            "of the machine that measured; diversity must be read beside the others, since a "
            "broken picture can be diverse, too."
        ),
        Table(table.head, table.rows),
        Bullets(tuple((note,) for note in table.notes)),
    ]


def limits(facts: PackageFacts) -> list[str]:
    """What it does not do, one sentence or two each."""
    recipe, found = facts.recipe, []
    if recipe.guidance_scale == 1.0:
        found.append(
            "A negative prompt does nothing at CFG 1, and a higher CFG burns the picture: guidance "
            "is part of the training."
        )
    found += [
        "Use it at strength 1.0; that is the strength it was trained at.",
        f"It was made for {_teacher_with_hash(facts)}. On another checkpoint it may work less well "
        "or change the style; that was not tested.",
        f"Other samplers, schedules and step counts than {recipe.plain_host} were not trained.",
    ]
    found += [_beside(lora) for lora in recipe.merged_loras]
    if not facts.drawn_with_teacher:
        found.append(
            f"The pictures were drawn with {facts.checkpoint.file}, which is not the file that was "
            "distilled (its hash differs)."
        )
    if facts.checkpoint.embedded:
        found.append(
            "The checkpoint is a small teacher of coloured shapes that ships with DP-DMD Studio. "
            "Its text encoder exists only there, so hosts cannot read prompts with it; this "
            "package shows the form, not a model for everyday use."
        )
    return found


def _teacher_with_hash(facts: PackageFacts) -> str:
    short = facts.recipe.teacher_autov2
    return f"{facts.teacher} (hash {short})" if short else facts.teacher


def _beside(lora: MergedLora) -> str:
    name = f"{one_line(lora.name, 120)} at {lora.strength:g}"
    if lora.included:
        return f"It contains {name}; do not add that LoRA again."
    return (
        f"The checkpoint had {name} merged when it was distilled; use that LoRA together with it."
    )


def _origin(facts: PackageFacts) -> list[tuple[Part, ...]]:
    recipe, metadata = facts.recipe, facts.metadata
    negative = {None: "zeros", "": "the empty prompt"}.get(
        recipe.teacher_negative, "a given prompt"
    )
    found: list[tuple[Part, ...]] = [
        (f"Teacher: guidance {recipe.teacher_guidance_scale:g}, negative prompt: {negative}.",)
    ]
    if recipe.anchor is not None:
        found.append(
            (
                f"Anchor: after {recipe.anchor.steps} of {recipe.anchor.grid} teacher steps; "
                f"anchored student steps: {recipe.num_anchored_steps}.",
            )
        )
    if facts.author:
        found.insert(0, (f"Author: {facts.author}.",))
    facts_known = [
        f"{label} {one_line(metadata[key], 60)}"
        for key, label in (
            ("ss_steps", "student updates"),
            ("ss_total_batch_size", "pictures an update"),
            ("ss_network_dim", "rank"),
            ("ss_learning_rate", "learning rate"),
        )
        if metadata.get(key)
    ]
    if facts_known:
        found.append((f"Training: {', '.join(facts_known)}.",))
    if recipe.generator:
        found.append(
            (f"Made with {one_line(recipe.generator, 80)}; its settings and its recipe stand in "
             "the file's metadata.",)
        )  # fmt: skip
    return found


def license_text(facts: PackageFacts) -> str:
    """What the uploader states, then what the base model asks for."""
    title, embedded = facts.checkpoint.detection.title, facts.checkpoint.embedded
    note = license_note(facts.family, title, embedded=embedded)
    own = f"The author states for this LoRA: {one_line(facts.license, 200)}. "
    return (own if facts.license else "") + note

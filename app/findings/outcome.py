"""Rules about what a run has to show: measurements, best student, prompts, how it ended."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from statistics import mean

from ..runs.facts import (
    Line,
    RunFacts,
    clearly_above_zero,
    clearly_nearer,
    deciding,
    number,
    numbers,
)
from .finding import Finding

# Measured on few prompts, the share of diversity kept is uncertain by about a tenth.
LOW_DIVERSITY, LOST_DIVERSITY = 0.8, 0.5
FALLING_DIVERSITY = 0.15
STILL_RISING = 0.05
# The distance from the teacher doubles before images differ at a glance; a quarter is a trend.
RISING_DISTANCE = 1.25
# More variety than the teacher has is not better: it is noise.
TOO_VARIED = 1.3
# As shares of the teacher's colours. Other seeds of the same prompts differ by up to 4 % in both
# (benchmarks/results/altered_copies.md); side by side, people see a tenth of brightness.
DRIFTED = {"brightness": 0.1, "saturation": 0.2}
DRIFTS = {"brightness": ("darker", "brighter"), "saturation": ("less saturated", "more saturated")}
FEW_PROMPTS, LONG_RUN_IMAGES = 200, 500
MANY_REPEATS = 100
GROUP = re.compile(r"\{([^{}]*\|[^{}]*)\}")
WILDCARD = re.compile(r"__[^_\s].*?__")
AT_WORK = ("loading", "running", "reporting")
ENDED_EARLY = ("stopped", "interrupted", "failed")
MAX_ERROR_CHARACTERS = 600


def collapsing_diversity(facts: RunFacts) -> Finding | None:
    """Less variety among images of one prompt, further from the teacher than before."""
    lines = [line for line in facts.evaluations if number(line, "diversity_kept") is not None]
    if len(lines) < 2:
        return None
    kept = [number(line, "diversity_kept") or 0.0 for line in lines]
    distance, _ = deciding(lines)
    away = [number(line, distance) or 0.0 for line in lines]
    now, best = kept[-1], max(kept[:-1])
    rising = now > kept[-2] + STILL_RISING
    fallen = best - now >= FALLING_DIVERSITY and away[-1] >= RISING_DISTANCE * min(away[:-1])
    both_low = max(kept[-2:]) < LOW_DIVERSITY
    if now >= LOW_DIVERSITY or rising or not (fallen or both_low):
        return None
    nearest = _nearest(lines, distance)
    config = facts.config
    advice = (
        "This objective has no diversity loss: use dp_dmd."
        if config.objective in ("dmd", "detach_only")
        else f"Start a copy of this run with a higher diversity weight "
        f"({2 * config.diversity_weight:g} in place of {config.diversity_weight:g}) or one more "
        f"anchored step ({config.num_anchored_steps + 1} in place of {config.num_anchored_steps})."
    )
    return Finding(
        "problem" if now < LOST_DIVERSITY or fallen else "warning",
        "Diversity is collapsing" if fallen else "Diversity is low",
        f"Images of one prompt vary {now:.0%} as much as the teacher's"
        + (f", {best:.0%} at best before" if fallen else "")
        + f". {advice} The student nearest to the teacher so far is that of update "
        f"{_step(nearest)}.",
    )


def noise_in_place_of_images(facts: RunFacts) -> Finding | None:
    """Twice in a row clearly more variety than the teacher has."""
    kept = [number(line, "diversity_kept") for line in facts.evaluations[-2:]]
    if len(kept) < 2 or any(value is None or value < TOO_VARIED for value in kept):
        return None
    return Finding(
        "problem",
        "Images vary more than the teacher's",
        f"They vary {kept[-1]:.0%} as much; that is noise or broken images, not diversity. Look "
        "at the previews. If they are broken, start a copy of this run with a lower learning rate "
        f"of the student ({facts.config.student_lr / 10:g} in place of "
        f"{facts.config.student_lr:g}).",
    )


def drifting_colours(facts: RunFacts) -> Finding | None:
    """Twice in a row clearly brighter, darker, more or less saturated than the teacher's images."""
    words = [said for name in DRIFTED if (said := _drift(facts.evaluations[-2:], name))]
    if not words:
        return None
    rate = facts.config.student_lr
    return Finding(
        "warning",
        "Colours drift from the teacher's",
        f"On the same prompts the student's images are {' and '.join(words)} than the teacher's. "
        "If the previews show it, too, start a copy of this run with fewer updates, a lower "
        f"learning rate of the student ({rate / 3:.1g} in place of {rate:g}) or less guidance of "
        "the teacher. The choice of the best student does not count brightness.",
    )


def _drift(lines: Sequence[Line], name: str) -> str:
    """By how much the last of two lines is off, in words, where both clearly are."""
    drifts = [[share - 1 for share in numbers(line, name)] for line in lines]
    if len(drifts) < 2 or not all(drifts):
        return ""
    for sign, word in zip((-1, 1), DRIFTS[name], strict=True):
        ours = [[sign * value for value in drift] for drift in drifts]
        if all(mean(one) >= DRIFTED[name] and clearly_above_zero(one) for one in ours):
            return f"{mean(ours[-1]):.0%} {word}"
    return ""


def best_student(facts: RunFacts) -> Finding | None:
    """Which update's student is the nearest to the teacher, where that is not the last one."""
    lines = [line for line in facts.evaluations if number(line, "teacher_distance") is not None]
    kept = number(facts.result, "kept_step")
    last = number(facts.result, "step")
    if kept is not None and last is not None and kept < last:
        return Finding(
            "info",
            f"The best student is that of update {kept:.0f}",
            f"It is clearly nearer to the teacher than the last one (update {last:.0f}), so it was "
            "written. The last one is among the run's checkpoints.",
        )
    if len(lines) < 2:
        return None
    distance, by_prompt = deciding(lines)
    nearest = _nearest(lines, distance)
    if nearest is lines[-1]:
        return None
    one, other = numbers(nearest, by_prompt), numbers(lines[-1], by_prompt)
    clear = len(one) == len(other) and bool(one) and clearly_nearer(one, other)
    written = clear and facts.config.keep == "best"
    return Finding(
        "info",
        f"The best student so far is that of update {_step(nearest)}",
        f"Its distance from the teacher is {number(nearest, distance):.3g}, that of "
        f"update {_step(lines[-1])} is {number(lines[-1], distance):.3g}. "
        + (
            "The difference is clear: the earlier one is written if the run ends like this."
            if written
            else "Chance may explain the difference."
            if not clear
            else "The run keeps the last one; set keep to best for the other."
        ),
    )


def not_measured(facts: RunFacts) -> Finding | None:
    """A run without measurements, which cannot choose the best student."""
    config = facts.config
    if facts.evaluations or not facts.metrics:
        return None
    if config.evaluate_every and facts.step < config.evaluate_every:
        return None  # not yet
    measures = config.evaluate_every and config.evaluation_prompts
    if measures and facts.progress.get("status") in AT_WORK:
        return None  # perhaps just now
    return Finding(
        "info",
        "This run is not measured",
        "Diversity and distance from the teacher are unknown, and the last student is kept. "
        "Measurements need held-out prompts (at most a fifth of all) and evaluate_every above 0. "
        "Compare measures a finished LoRA.",
    )


def too_few_prompts(facts: RunFacts) -> Finding | None:
    """Prompts that come so often that the student learns them by heart."""
    config = facts.config
    count = sum(min(variants(prompt), FEW_PROMPTS) for prompt in facts.prompts[:FEW_PROMPTS])
    images = config.steps * config.batch_size
    if not facts.prompts or images < LONG_RUN_IMAGES or count >= FEW_PROMPTS:
        return None
    repeats = images / count
    if repeats < MANY_REPEATS:
        return None
    return Finding(
        "warning",
        "Too few prompts",
        f"{count} different prompts for {config.steps} updates of {config.batch_size}: each comes "
        f"about {repeats:.0f} times, and other prompts may look worse for it. {FEW_PROMPTS} or "
        "more of the kind that you use do better; alternatives such as {red|blue|green} and "
        "wildcards multiply them.",
    )


def variants(prompt: str) -> int:
    """About how many texts a prompt's {a|b} and wildcards give; at most FEW_PROMPTS counts."""
    if WILDCARD.search(prompt):
        return FEW_PROMPTS
    count = 1
    while count < FEW_PROMPTS and (group := GROUP.search(prompt)):
        count *= group.group(1).count("|") + 1
        prompt = prompt[: group.start()] + prompt[group.end() :]
    return min(count, FEW_PROMPTS)


def ended_early(facts: RunFacts) -> Finding | None:
    """A run that failed, or that stopped before its last update."""
    status, step = facts.progress.get("status"), facts.step
    if status not in ENDED_EARLY:
        return None
    if status == "failed":
        error = str(facts.progress.get("error") or "no reason was noted; see the log")
        return Finding("problem", "The run failed", error[:MAX_ERROR_CHARACTERS])
    if step >= facts.config.steps:
        return None
    return Finding(
        "info",
        f"Stopped after {step} of {facts.config.steps} updates",
        "The learning rate falls over the whole run, so a run that is stopped early is rougher "
        "than one that was planned that short. Resume goes on where it stopped.",
    )


def _nearest(lines: Sequence[Line], distance: str) -> Line:
    return min(lines, key=lambda line: number(line, distance) or math.inf)


def _step(line: Line) -> str:
    return f"{number(line, 'step'):.0f}"


OUTCOME_RULES: tuple[Callable[[RunFacts], Finding | None], ...] = (
    ended_early,
    collapsing_diversity,
    noise_in_place_of_images,
    drifting_colours,
    too_few_prompts,
    best_student,
    not_measured,
)

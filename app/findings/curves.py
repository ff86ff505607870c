"""Rules about the course of a run: learning rate, fake score, gradients, speed, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from ..runs.facts import RunFacts, number, window_medians
from .finding import Finding, Level

# Medians over stretches of a tenth of the run, but of at least so many updates and images: each
# image is noised to a random sigma, on which losses depend far more than on training.
WINDOWS, MIN_UPDATES, MIN_IMAGES = 10, 5, 80
# Before this many stretches there is nothing to compare with.
MIN_WINDOWS = 3
# The anchor error is a share of the target's size: at 1 the student misses by all there is to hit.
LOST_ANCHOR = 1.0
# Healthy runs lower it from start to end; by a half above its lowest is no noise any more.
RISING_ANCHOR = 1.5
# 1 - cosine between real and fake score. Healthy runs stay below .03 (DP-DMD), and below .05 or
# come back (plain DMD); a student that nobody corrects goes towards 1.
LAGGING_GAP, LOST_GAP = 0.05, 0.3
RISING_GAP = 2.5
RECOVERING = 0.9
# A fake score that hardly learns agrees with the teacher all the same: it still is the teacher. Its
# loss tells. Healthy runs keep it within a factor of 1.9 of its lowest level.
RISING_LOSS, LOST_LOSS = 2.5, 5.0
GRADIENT_NORMS = (("student", "student_grad_norm"), ("fake score", "fake_grad_norm"))
# Gradient norms of healthy runs fall after the first windows; medians do not see single spikes.
EXPLODING, ABOVE_ALL_BEFORE, MIN_WINDOWS_OF_NORMS = 5.0, 1.5, 6
CLIPPED_SHARE, CLIPPED_UPDATES, FAR_ABOVE_LIMIT = 0.95, 50, 10.0
# Other work on the machine may double an update's time; spilling multiplies it.
SLOWER = 3.0
SPEED_WINDOW, SPEED_WINDOW_OF_SEVERAL_SIZES = 10, 60
FULL_MEMORY = 0.85  # of the device's own; the desktop takes some of it, too
MIN_UPDATES_WITHOUT_GRADIENT = 10
# A loss scale that has settled overflows about once in 200 steps, when it tries a higher one.
OVERFLOW_SHARE, OVERFLOW_UPDATES = 0.1, 50
# Spilling multiplies an update's time; two slow updates in a row are no hiccup.
SUDDENLY, SLOW_UPDATES, MIN_EARLIER = 5.0, 2, 5
NOTHING_FREE = 0.03  # of the device's own memory


def learning_rate_too_high(facts: RunFacts) -> Finding | None:
    """The student moves away from the path that it is anchored to."""
    medians = _medians(facts, "anchor_error")
    if len(medians) < MIN_WINDOWS:
        return None
    now, lowest, lost = medians[-1], min(medians[:-1]), _anchor_lost(facts)
    if not lost and now < RISING_ANCHOR * lowest:
        return None
    rate = facts.config.student_lr
    return Finding(
        "problem" if lost or now >= 2 * lowest else "warning",
        "Learning rate too high",
        f"The student moves away from the teacher's path: the anchor error is {now:.2f}, and was "
        f"{lowest:.2f} before (it should fall). Stop this run and start a copy of it with a lower "
        f"learning rate of the student: {rate / 10:g} in place of {rate:g}.",
    )


def _anchor_lost(facts: RunFacts) -> bool:
    medians = _medians(facts, "anchor_error")
    return len(medians) >= MIN_WINDOWS and medians[-1] >= LOST_ANCHOR


def fake_score_lagging(facts: RunFacts) -> Finding | None:
    """The fake score no longer knows the student's images."""
    if _anchor_lost(facts):
        return None  # no fake score can follow a student that runs away
    found = _loss_rises(facts) or _directions_part(facts)
    if found is None:
        return None
    level, seen = found
    config = facts.config
    return Finding(
        level,
        "The fake score lags behind the student",
        f"{seen} What it then teaches the student is wrong. Start a copy of this run with more "
        f"fake-score updates ({2 * config.fake_updates} in place of {config.fake_updates}), or "
        "with a higher learning rate of the fake score or a lower one of the student (now "
        f"{config.fake_lr:g} and {config.student_lr:g}).",
    )


def _loss_rises(facts: RunFacts) -> tuple[Level, str] | None:
    medians = _medians(facts, "fake_loss")
    if len(medians) < MIN_WINDOWS + 1:
        return None
    now, lowest = min(medians[-2:]), min(medians[:-2])
    if lowest <= 0 or now < RISING_LOSS * lowest:
        return None
    return (
        "problem" if now >= LOST_LOSS * lowest else "warning",
        f"Its error on the student's images has risen to {now / lowest:.1f} times its lowest "
        "level (it should stay level).",
    )


def _directions_part(facts: RunFacts) -> tuple[Level, str] | None:
    gaps = [1 - cosine for cosine in _medians(facts, "score_cosine")]
    if len(gaps) < MIN_WINDOWS + 1:
        return None
    now, before, lowest = gaps[-1], gaps[-2], min(gaps[:-2])
    rising = min(now, before) >= RISING_GAP * lowest and now >= RECOVERING * before
    if min(now, before) < LAGGING_GAP or not (rising or now >= LOST_GAP):
        return None
    return (
        "problem" if now >= LOST_GAP else "warning",
        f"Its agreement with the teacher (score cosine) is {1 - now:.2f}; at its best it was "
        f"{1 - lowest:.2f}.",
    )


def exploding_gradient(facts: RunFacts) -> Finding | None:
    """A gradient norm far above its level before, or one that is clipped all the time."""
    rates = facts.config.student_lr, facts.config.fake_lr
    for (label, name), rate in zip(GRADIENT_NORMS, rates, strict=True):
        values = facts.values(name)
        medians = _medians(facts, name)
        if len(medians) >= MIN_WINDOWS_OF_NORMS:
            before, highest = median(medians[:-2]), max(medians[:-2])
            now = min(medians[-2:])
            if before > 0 and now >= EXPLODING * before and now >= ABOVE_ALL_BEFORE * highest:
                return Finding(
                    "problem",
                    f"The gradient of the {label} explodes",
                    f"Its norm is {now:.3g}, {now / before:.0f} times its level "
                    "before. Stop this run; what it has saved is kept. Start a copy with a lower "
                    f"learning rate ({rate / 3:.1g} in place of {rate:g}), and with bfloat16 or "
                    "float32 if it computes in float16.",
                )
        finding = _clipped(values[-CLIPPED_UPDATES:], facts.config.max_grad_norm, label, rate)
        if finding:
            return finding
    return None


def _clipped(recent: Sequence[float], limit: float, label: str, rate: float) -> Finding | None:
    share = sum(value > limit for value in recent) / max(1, len(recent))
    if len(recent) < CLIPPED_UPDATES or share < CLIPPED_SHARE:
        return None
    middle = median(recent)
    far = middle >= FAR_ABOVE_LIMIT * limit
    return Finding(
        "warning" if far else "info",
        f"The gradient of the {label} is clipped at nearly every update",
        f"{share:.0%} of the last {len(recent)} updates were clipped to a norm of {limit:g}; half "
        f"of them were above {middle:.3g}. "
        + (
            f"So far above it, the learning rate is probably too high: {rate / 3:.1g} in place of "
            f"{rate:g}."
            if far
            else "That does no harm as long as the previews improve."
        ),
    )


def no_gradient(facts: RunFacts) -> Finding | None:
    """Gradients of exactly zero: nothing is learned."""
    for label, name in GRADIENT_NORMS:
        recent = facts.values(name)[-MIN_UPDATES_WITHOUT_GRADIENT:]
        if len(recent) == MIN_UPDATES_WITHOUT_GRADIENT and not any(recent):
            return Finding(
                "problem",
                f"The {label} learns nothing",
                f"Its gradient was exactly zero in each of the last {len(recent)} updates. With "
                "float16 it was too small to be held: choose bfloat16 or float32. Otherwise see "
                "whether its learning rate or weight is zero.",
            )
    return None


def overflowing(facts: RunFacts) -> Finding | None:
    """Steps that are left out again and again, since float16 cannot hold their gradients."""
    recent = facts.metrics[-OVERFLOW_UPDATES:]
    count = sum(bool(number(line, "left_out_steps")) for line in recent)
    if len(recent) < OVERFLOW_UPDATES or count < OVERFLOW_SHARE * len(recent):
        return None
    return Finding(
        "warning",
        "Float16 overflows often",
        f"In {count} of the last {len(recent)} updates an optimizer step was left out, since its "
        "gradient went beyond what float16 holds. The run learns less than it was asked to. Start "
        "a copy with --dtype bfloat16 or float32.",
    )


def memory_spills(facts: RunFacts) -> Finding | None:
    """Updates suddenly take a multiple of their time while the device has no memory left."""
    seconds = facts.values("seconds")
    earlier, latest = seconds[:-SLOW_UPDATES], seconds[-SLOW_UPDATES:]
    if len(earlier) < MIN_EARLIER:
        return None
    before, now = median(earlier), min(latest)
    free = number(facts.metrics[-1], "free_memory_bytes")
    whole = number(facts.metrics[-1], "device_memory_bytes")
    if free is None or not whole or free > NOTHING_FREE * whole or now < SUDDENLY * before:
        return None
    return Finding(
        "problem",
        "Memory spills to system RAM",
        f"An update takes {now:.3g} s; it took {before:.3g} s before. The card has "
        f"{free / whole:.0%} of its memory free, so the driver probably moves the rest to system "
        "RAM, which is many times slower. Close what else uses the card (the host's loaded model, "
        "a browser), or stop this run and resume it: it then begins with what fits the free "
        "memory. In the NVIDIA Control Panel on Windows, 'CUDA - Sysmem Fallback Policy: Prefer "
        "No Sysmem Fallback' lets a run notice and save memory by itself.",
    )


def slower_than_before(facts: RunFacts) -> Finding | None:
    """Updates take a multiple of their earlier time and stay there: memory spills on Windows."""
    if memory_spills(facts):
        return None  # it is said already
    several = len(facts.config.resolutions) > 1
    size = SPEED_WINDOW_OF_SEVERAL_SIZES if several else SPEED_WINDOW
    medians = window_medians(facts.values("seconds"), size)
    if len(medians) < MIN_WINDOWS + 1:
        return None
    before = min(medians[1:-2] or medians[:1])
    now = min(medians[-2:])
    if before <= 0 or now < SLOWER * before:
        return None
    seen = f"An update takes {now:.3g} s; it took {before:.3g} s before. "
    share = _memory_share(facts)
    if facts.platform == "win32" and share is not None and share >= FULL_MEMORY:
        return Finding(
            "problem",
            "Memory spills to system RAM",
            f"{seen}The card's own memory is {share:.0%} full, so the driver moves the rest to "
            "system RAM, which is many times slower. Close what else uses the card (the host's "
            "loaded model, a browser), or start a copy with gradient checkpointing or a smaller "
            "preset. In the NVIDIA Control Panel, 'CUDA - Sysmem Fallback Policy: Prefer No "
            "Sysmem Fallback' makes a run stop with a clear error in place of that.",
        )
    full = facts.platform == "win32" and share is None
    return Finding(
        "warning",
        "Updates have become slower",
        f"{seen}Something else may be using the machine, or it throttles for heat. Look what runs "
        "besides"
        + ("; on Windows, the card's memory may have spilled to system RAM." if full else "."),
    )


def _memory_share(facts: RunFacts) -> float | None:
    """Peak memory in use as a share of the device's own, where both are known."""
    for line in reversed(facts.metrics):
        used, whole = (number(line, f"{name}memory_bytes") for name in ("", "device_"))
        if used and whole:
            return used / whole
    return None


def _medians(facts: RunFacts, name: str) -> list[float]:
    values = facts.values(name)
    least = max(MIN_UPDATES, math.ceil(MIN_IMAGES / facts.config.batch_size))
    return window_medians(values, max(least, len(values) // WINDOWS))


CURVE_RULES: tuple[Callable[[RunFacts], Finding | None], ...] = (
    no_gradient,
    learning_rate_too_high,
    fake_score_lagging,
    exploding_gradient,
    overflowing,
    memory_spills,
    slower_than_before,
)

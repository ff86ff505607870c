"""A rule about memory that a driver moves to system RAM without saying so."""

from __future__ import annotations

from statistics import median

from ..runs.facts import RunFacts, number
from .finding import Finding

# Spilling multiplies an update's time; two slow updates in a row are no hiccup.
SUDDENLY, SLOW_UPDATES, MIN_EARLIER = 5.0, 2, 5
NOTHING_FREE = 0.03  # of the device's own memory


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

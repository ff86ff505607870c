"""What is going wrong in a run, in plain words, and what to do: from the files that it writes.

Each rule looks at one sign and says nothing unless it is clear. The thresholds were set on runs of
the embedded teachers: healthy ones of both stay silent, runs with a learning rate 100 times too
high, with a fake score that hardly learns, and with plain DMD are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .run_directory import RunDirectory
from .run_facts import RunFacts, read_facts

Level = Literal["info", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing to know of a run; `text` says what was seen and what to do."""

    level: Level
    title: str
    text: str


def diagnose(run: RunDirectory) -> list[Finding]:
    """What a person should know of this run, the worst first. Cheap, and never raises.

    Odd or damaged content of the run's files counts as not there.
    """
    return diagnose_facts(read_facts(run))


def diagnose_facts(facts: RunFacts) -> list[Finding]:
    """The same for facts that were read already."""
    from .diagnosis_curves import CURVE_RULES
    from .diagnosis_outcome import OUTCOME_RULES

    found = [finding for rule in (*CURVE_RULES, *OUTCOME_RULES) if (finding := rule(facts))]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))

"""What is going wrong in a run, in plain words, and what to do: from the files that it writes.

Each rule looks at one sign and says nothing unless it is clear. The thresholds were set on runs of
the embedded teachers: healthy ones of both stay silent, runs with a learning rate 100 times too
high, with a fake score that hardly learns, and with plain DMD are named.
"""

from __future__ import annotations

from ..runs.directory import RunDirectory
from ..runs.facts import RunFacts, read_facts
from .curves import CURVE_RULES
from .finding import LEVELS, Finding
from .outcome import OUTCOME_RULES

__all__ = ["Finding", "diagnose", "diagnose_facts"]


def diagnose(run: RunDirectory) -> list[Finding]:
    """What a person should know of this run, the worst first. Cheap, and never raises.

    Odd or damaged content of the run's files counts as not there.
    """
    return diagnose_facts(read_facts(run))


def diagnose_facts(facts: RunFacts) -> list[Finding]:
    """The same for facts that were read already."""
    found = [finding for rule in (*CURVE_RULES, *OUTCOME_RULES) if (finding := rule(facts))]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))

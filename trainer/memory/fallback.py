"""Which memory fallbacks a run has taken, noted in its folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...app.config.distill_config import DistillConfig
from ...app.runs.directory import RunDirectory
from ...core.errors import RunError

log = logging.getLogger("dpdmd_studio.memory")
FILE = "memory.json"
NAMES = (
    "gradient_checkpointing", "micro_batch_size", "offload_optimizer", "base_weights",
    "gradient_steps", "offload_base",
)  # fmt: skip
CHANGING = ("base_weights", "gradient_steps")
"""Fallbacks that change what is learned."""


def write_fallbacks(run: RunDirectory, config: DistillConfig, since: Mapping[str, int]) -> None:
    """Write into the run which fallbacks it has taken, and the update each is in force since."""
    taken = {name: getattr(config, name) for name in NAMES}
    run.write_json(FILE, taken | {"since": dict(since)})


def read_fallbacks(
    run: RunDirectory, config: DistillConfig
) -> tuple[DistillConfig, dict[str, int]]:
    """(settings with the fallbacks that the run took before, the update each is in force since).

    Raises:
        RunError: the file that says so is damaged.
    """
    if not (run.path / FILE).exists():
        return config, {}
    values = run.read_json(FILE)
    for name in NAMES:
        current = getattr(config, name)
        value: Any = values.get(name, current)  # a fallback that came later is not in older files
        if type(value) is not type(current):
            raise RunError(
                f"{run.path / FILE} is damaged: {name} is {value!r}, expected a value "
                f"like {current!r}. Delete that file to begin with the run's own settings."
            )
        if value != current:
            config = replace(config, **{name: value}).validate()
            log.info("This run was short of memory before: %s is %s now.", name, value)
    since = values.get("since", {})
    known = since if isinstance(since, dict) else {}
    return config, {k: v for k, v in known.items() if k in NAMES and type(v) is int}

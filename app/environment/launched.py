"""Which of how many processes this is, where a launcher has started several for one run.

`accelerate launch` and `torchrun` say so in environment variables. Without them a run has one
process. Imports neither torch nor any host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import SettingsError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Place:
    """One process among those of a run.

    Attributes:
        rank: number of the process, from 0; the first alone writes.
        size: number of processes.
        local_rank: number of the process on its machine, and of the device it takes there.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0


def place(variables: Mapping[str, str] | None = None) -> Place:
    """This process's place, from the launcher's variables (default: the environment's).

    Raises:
        SettingsError: only some of the variables are set, or they are no numbers.
    """
    found = os.environ if variables is None else variables
    if found.get("WORLD_SIZE", "1") == "1":
        return Place()
    try:
        rank, size, local_rank = (int(found[name]) for name in NAMES)
    except (KeyError, ValueError) as error:
        said = ", ".join(f"{name}={found.get(name, 'not set')}" for name in NAMES)
        raise SettingsError(
            f"WORLD_SIZE says that this run has several processes, but not which this is ({said}). "
            "Start it with `accelerate launch` or `torchrun`, or unset WORLD_SIZE."
        ) from error
    if not (0 <= rank < size and 0 <= local_rank <= rank):
        raise SettingsError(
            f"RANK={rank}, LOCAL_RANK={local_rank} and WORLD_SIZE={size} do not go together. Start "
            "the run with `accelerate launch` or `torchrun`."
        )
    return Place(rank, size, local_rank)


def require_one_process(what: str) -> None:
    """Raise SettingsError where a launcher has started several processes for `what`."""
    size = place().size
    if size > 1:
        raise SettingsError(
            f"{what} runs in one process, found {size} that a launcher has started. Start it "
            "without `accelerate launch` or `torchrun`; `distill` and `resume` alone use several."
        )

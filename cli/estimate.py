"""The `estimate` command: memory and time of a run before it starts."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..app.config.distill_config import DistillConfig
from ..app.config.presets import MEMORIES
from ..app.config.request import ModelFiles
from ..app.config.resolutions import choose_resolutions
from ..core.errors import SettingsError
from .arguments import add_config_arguments, add_model_files
from .settings import add_settings_option, settings_values

if TYPE_CHECKING:
    from ..trainer.commands.estimate import MemoryEstimate

GIB = 2**30
PARTS = ("base", "adapters", "moments", "gradients", "activations", "peak")
ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """Options of the `estimate` command: those of `distill` that decide memory and time."""
    add_model_files(parser)
    parser.add_argument("--memory", metavar="SIZE", help="the card's memory, such as 12gb")
    parser.add_argument("--preset", choices=MEMORIES, help="settings for a card's memory")
    parser.add_argument(
        "--measure", action="store_true", help="time a few updates on this device, nothing is kept"
    )
    add_settings_option(parser)
    add_config_arguments(parser)
    parser.set_defaults(run_command=_estimate)


def parse_memory(text: str) -> int:
    """Bytes of "12gb", "12 GB" or "7.5" (GiB, as cards are sold).

    Raises:
        SettingsError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gi?b?)?\s*", text, re.IGNORECASE)
    if not match or not 0 < float(match[1]) <= 4096:
        raise SettingsError(f"--memory is {text!r}; expected a card's size such as 12gb.")
    return round(float(match[1]) * GIB)


def _estimate(arguments: argparse.Namespace) -> int:
    from ..app.estimate import time_of_earlier_runs
    from ..core.families import identify

    path = Path(arguments.checkpoint).expanduser()
    memory = parse_memory(arguments.memory) if arguments.memory else None
    detection = identify(path)
    config = DistillConfig.from_dict(settings_values(arguments, detection.family))
    choose_resolutions(config, detection)  # refuses what a run would refuse
    files = {kind: getattr(arguments, name) for name, kind in ENCODERS.items()}
    from ..trainer.commands.estimate import estimate_memory  # heavy

    found = estimate_memory(
        path,
        detection,
        config,
        memory,
        {kind: Path(file) for kind, file in files.items() if file},
        _tell,
    )
    if arguments.measure:
        seconds, text = _measured_time(arguments, config)
    else:
        seconds, text = time_of_earlier_runs(path, detection, config)
    if arguments.json:
        sys.stdout.write(json.dumps(found.to_dict() | {"seconds": seconds}) + "\n")
    else:
        sys.stdout.write(f"{detection.title}, {found.dtype}\n{memory_text(found)}\n{text}\n")
    return 0


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")


def _measured_time(arguments: argparse.Namespace, config: DistillConfig) -> tuple[float, str]:
    """(seconds of all updates, the same in words), from a few updates on this device."""
    from ..app.estimate import duration
    from ..trainer.commands.timed_updates import seconds_per_update  # heavy

    files = {name: getattr(arguments, name) for name in ("checkpoint", *ENCODERS, "vae")}
    update = seconds_per_update(ModelFiles(**files), config, _tell)
    seconds = update * config.steps
    return seconds, (
        f"Time: about {duration(seconds)} for {config.steps} updates of {update:.2f} s, measured "
        "on this device; loading, previews and measurements come on top."
    )


def memory_text(found: MemoryEstimate) -> str:
    """The counted parts as a table in GiB, and what fits."""
    lines = ["GiB at the worst moment".ljust(30) + "".join(f"{part:>13}" for part in PARTS)]
    before = ""
    for name, row in found.rows.items():
        added = name.startswith(f"{before} ")  # a rung below the one before it
        words = f"and {name.removeprefix(before).strip()}" if before and added else name
        lines.append(
            words.ljust(30) + "".join(f"{getattr(row, part) / GIB:13.2f}" for part in PARTS)
        )
        before = name
    lines.append("Counted, not measured; a driver and an allocator take some more.")
    if found.memory is not None:
        card = f"A card with {found.memory / GIB:g} GB"
        if not found.asked:
            card = f"The {found.memory / GIB:.1f} GB that are free here"
        if found.fits is None:
            lines.append(f"{card}: neither these settings nor any preset fit. Lower --resolution.")
        else:
            name, counted = found.fits
            lines.append(f"{card}: fits with {name} ({counted.peak / GIB:.2f} GiB counted).")
    return "\n".join(lines)

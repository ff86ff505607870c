"""The `estimate` command: memory and time of a run before it starts."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..app.config.distill_config import DistillConfig
from ..app.config.knobs import AUTO
from ..app.config.memory_fallback import fallbacks_left
from ..app.config.new_run import choose_resolutions
from ..app.config.presets import MEMORIES, presets_of
from ..app.config.request import ModelFiles, asked_sampling
from ..app.disk import disk_use
from ..app.estimate import (
    ALLOCATOR_SHARE,
    DRIVER_BYTES,
    GIB,
    Memory,
    arithmetic_memory,
    bytes_in_16_bit,
    time_of_earlier_runs,
)
from ..app.library.model_folders import size_text
from ..app.library.path_checks import typed_path
from ..app.runs.tables import duration
from ..core.errors import SettingsError
from ..core.families import Detection, check_own_parts, gains_by_half
from .arguments import add_config_arguments, add_model_files, model_files, print_result
from .settings import add_settings_option, settings_values

PARTS = ("base", "adapters", "moments", "gradients", "activations", "peak")


@dataclass(frozen=True)
class MemoryEstimate:
    """What an update takes, by settings.

    Attributes:
        rows: with the settings as they are, and with one memory fallback after the other.
        memory: bytes of the card that was asked about, else what is free on the device at hand.
        fits: the first of them, or preset, that fits, and its memory; None: none does.
        dtype: number format of the network.
        asked: whether a card was asked about.
    """

    rows: dict[str, Memory]
    memory: int | None
    fits: tuple[str, Memory] | None
    dtype: str
    asked: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The estimate, ready for JSON; all sizes in bytes."""
        return {
            "dtype": self.dtype,
            "rows": {name: asdict(row) | {"peak": row.peak} for name, row in self.rows.items()},
            "memory": self.memory,
            "asked": self.asked,
            "fits": self.fits and {"settings": self.fits[0], "peak": self.fits[1].peak},
        }


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
    path = Path(typed_path(arguments.checkpoint))
    memory = parse_memory(arguments.memory) if arguments.memory else None
    files = model_files(arguments)
    vae = Path(files.vae) if files.vae else None
    detection = check_own_parts(path, files.text_encoders(), vae)
    config = DistillConfig.from_dict(settings_values(arguments, detection))
    choose_resolutions(config, detection)  # refuses what a run would refuse
    found = estimate_memory(detection, config, bytes_in_16_bit(path), memory)
    asked = asked_sampling(config.prediction, config.zero_terminal_snr, config.shift)
    on_card = config.dtype == AUTO and found.memory is not None and found.dtype == "bfloat16"
    if on_card and gains_by_half(path, asked):
        found = replace(found, dtype="float16")  # as many bytes
    if arguments.measure:
        facts, text = _measured(files, config)
    else:
        seconds, text = time_of_earlier_runs(path, detection, config)
        facts = {"seconds": seconds}
    about = "".join(f"\n{note}" for note in detection.notes)
    use = disk_use(detection, config, bytes_in_16_bit(path))
    whole = use.in_run + use.result
    disk = (
        f"Disk: up to {size_text(whole)} while it runs, {size_text(use.states)} of it saved states."
    )
    text = f"{detection.title}, {found.dtype}{about}\n{memory_text(found)}\n{text}\n{disk}"
    facts |= {"disk_bytes": whole}
    print_result(found.to_dict() | facts, text, arguments.json)
    return 0


def estimate_memory(
    detection: Detection, config: DistillConfig, half_bytes: int, memory: int | None
) -> MemoryEstimate:
    """What an update takes with these settings and with every fallback, and what fits a card.

    Args:
        half_bytes: what the checkpoint's numbers take in 16 bit.
        memory: bytes of the card; None: what is free on the device at hand, if it has its own.
    """
    asked = memory is not None
    room = memory if memory is not None else _free_memory(config.device)
    dtype = _number_format(config, asked=asked)
    overhead = DRIVER_BYTES if asked else 0.0  # a driver's share of free memory is taken already

    def needed(settings: DistillConfig) -> Memory:
        return arithmetic_memory(detection, replace(settings, dtype=dtype), half_bytes)

    rows = {name: needed(settings) for name, settings in with_fallbacks(config).items()}
    presets = {name: needed(settings) for name, settings in _presets(detection, config).items()}
    fits = None
    if room is not None:
        most = (room - overhead) / (1 + ALLOCATOR_SHARE)
        fits = next((pair for pair in (rows | presets).items() if pair[1].peak <= most), None)
    return MemoryEstimate(rows, room, fits, dtype, asked)


def with_fallbacks(config: DistillConfig) -> dict[str, DistillConfig]:
    """The settings as they are, and with each memory fallback on top of those before it."""
    found, options = {"as set": config}, []
    if config.optimizer != "adamw8bit":
        found["--optimizer adamw8bit"] = replace(config, optimizer="adamw8bit")
    while left := fallbacks_left(config):
        fallback = left[0]
        if fallback.name == "micro_batch_size":
            fallback = replace(fallback, value=1)  # the halves between say little
        config = fallback.taken(config)
        options.append(fallback.option)
        found[" ".join(options)] = config
    return found


def _presets(detection: Detection, config: DistillConfig) -> dict[str, DistillConfig]:
    """The family's presets, from large cards to small."""
    presets = presets_of(detection.family, detection.title)
    return {
        f"--preset {name}": replace(config, **values) for name, values in reversed(presets.items())
    }


def _number_format(config: DistillConfig, *, asked: bool) -> str:
    """The run's number format; auto is bfloat16 on the card that is asked about."""
    if config.dtype != AUTO:
        return config.dtype
    if asked and config.device != "cpu":
        return "bfloat16"
    from ..trainer.commands.timed_updates import number_format  # heavy

    return number_format(config.device)


def _free_memory(device: str) -> int | None:
    from ..trainer.commands.timed_updates import free_bytes  # heavy

    return free_bytes(device)


def _measured(files: ModelFiles, config: DistillConfig) -> tuple[dict[str, Any], str]:
    """(seconds of all updates and peak bytes, the same in words), from a few on this device."""
    from ..trainer.commands.timed_updates import measured_updates  # heavy

    update, peak = measured_updates(files, config)
    seconds = update * config.steps
    text = (
        f"Time: about {duration(seconds)} for {config.steps} updates of {update:.2f} s, measured "
        "on this device; loading, previews and measurements come on top."
    )
    if peak is not None:
        text = f"Memory: {peak / GIB:.2f} GiB measured in these updates.\n{text}"
    return {"seconds": seconds, "measured_peak": peak}, text


def memory_text(found: MemoryEstimate) -> str:
    """The parts as a table in GiB, and what fits."""
    lines = ["GiB at the worst moment".ljust(30) + "".join(f"{part:>13}" for part in PARTS)]
    before = ""
    for name, row in found.rows.items():
        added = name.startswith(f"{before} ")  # one more than the one before it
        words = f"and {name.removeprefix(before).strip()}" if before and added else name
        lines.append(
            words.ljust(30) + "".join(f"{getattr(row, part) / GIB:13.2f}" for part in PARTS)
        )
        before = name
    lines.append("By arithmetic, not measured; a driver and an allocator take some more.")
    if found.memory is not None:
        card = f"A card with {found.memory / GIB:g} GB"
        if not found.asked:
            card = f"The {found.memory / GIB:.1f} GB that are free here"
        if found.fits is None:
            lines.append(f"{card}: neither these settings nor any preset fit. Lower --resolution.")
        else:
            name, needed = found.fits
            lines.append(f"{card}: fits with {name} ({needed.peak / GIB:.2f} GiB by arithmetic).")
    return "\n".join(lines)

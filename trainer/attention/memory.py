"""What attention kernels took, remembered in the data folder; what a run chose, in its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...app.library.home import home
from ...app.runs.directory import RunDirectory
from ...core.errors import OutputError, RunError
from ...core.files import atomic_write

FILE, SET_ASIDE, VERSION = "attention.json", "attention.damaged.json", 1
MAX_BYTES = 4 << 20
Times = dict[str, float]
Report = Callable[[str], object]


def machine_key(device: torch.device, dtype: torch.dtype) -> str:
    """All that a measurement holds for: device, number format, versions of torch and xformers."""
    name = device.type
    if device.type in ("cuda", "xpu"):
        name = getattr(torch, device.type).get_device_name(device)
    try:
        xformers = importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        xformers = "none"
    number_format = str(dtype).removeprefix("torch.")
    return f"{name}, {number_format}, torch {torch.__version__}, xformers {xformers}"


class Measurements:
    """Seconds by shape and candidate on this machine; what is new is kept by `save`.

    A file that is damaged or cannot be written costs measuring again, never a run.
    """

    def __init__(self, key: str, report: Report) -> None:
        """Args:
        key: of `machine_key`.
        report: is told what is wrong with the file.
        """
        self._key, self._report = key, report
        self._path = home() / FILE
        self._known = self._read()
        self._changed = False

    def get(self, shape: str) -> Times | None:
        """What was measured for a shape, if it was."""
        return self._known.get(self._key, {}).get(shape)

    def put(self, shape: str, times: Times) -> None:
        """Remember a measurement."""
        self._known.setdefault(self._key, {})[shape] = times
        self._changed = True

    def save(self) -> None:
        """Write what was added."""
        if not self._changed:
            return
        text = json.dumps({"version": VERSION, "measured": self._known}, indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write.write_text(self._path, text + "\n")
        except (OSError, OutputError) as error:
            self._report(f"Attention timings cannot be kept in {self._path}: {error}")

    def _read(self) -> dict[str, dict[str, Times]]:
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise ValueError("it is too large")
            return _checked(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._report(f"{self._path} cannot be read ({error}); attention is measured again.")
        except (ValueError, RecursionError) as error:
            self._set_aside(str(error)[:200])
        return {}

    def _set_aside(self, reason: str) -> None:
        kept = "left where it is"
        with contextlib.suppress(OSError):
            atomic_write.replace(self._path, self._path.with_name(SET_ASIDE))
            kept = f"kept as {SET_ASIDE}"
        self._report(f"{self._path} is damaged ({reason}), {kept}; attention is measured again.")


def _checked(content: Any) -> dict[str, dict[str, Times]]:
    """The measurements of a file's content, or ValueError saying what is wrong."""
    measured = content.get("measured") if isinstance(content, dict) else None
    if not isinstance(measured, dict) or content.get("version") != VERSION:
        raise ValueError(f"not attention timings in format {VERSION}")
    for shapes in measured.values():
        if not isinstance(shapes, dict):
            raise ValueError("a device has no table of shapes")
        for times in shapes.values():
            if not isinstance(times, dict) or not all(_is_seconds(t) for t in times.values()):
                raise ValueError("a shape has no table of seconds")
    return measured


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0  # type: ignore[arg-type]


def noted_choice(run: RunDirectory, key: str, report: Report) -> dict[str, str]:
    """The candidates that a run has begun with, by layer; empty if it noted none for this machine.

    A resume takes them whatever was measured since, so that it computes what the run did.
    """
    path: Path = run.path / FILE
    if not path.exists():
        return {}
    try:
        content = run.read_json(FILE)
    except RunError:
        content = {}
    layers = content.get("layers")
    if content.get("machine") == key and isinstance(layers, dict):
        return {str(name): str(choice) for name, choice in layers.items()}
    report(
        f"Attention is chosen anew: {path} is of another device or version, or damaged. The "
        "resumed run is the same up to rounding."
    )
    return {}


def note_choice(run: RunDirectory, key: str, layers: dict[str, str]) -> None:
    """Keep a run's candidates by layer in its folder."""
    run.write_json(FILE, {"machine": key, "layers": layers})

"""Small JSON files and numbers in them, read without ever failing: they may hold anything."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16 << 20
READ_ATTEMPTS, READ_PAUSE_SECONDS = 5, 0.02


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if it is missing, damaged, or far too large."""
    for _ in range(READ_ATTEMPTS):
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                return {}
            content = json.loads(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        except PermissionError:  # Windows, while it is being replaced
            time.sleep(READ_PAUSE_SECONDS)
        except (OSError, ValueError, RecursionError):
            return {}
    return {}


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number, else None; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

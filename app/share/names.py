"""Text and file names of unknown origin made fit to be shown and to be written."""

from __future__ import annotations

import re
import unicodedata

from ...core.errors import SettingsError

MAX_NAME = 80
MAX_TEXT = 500
# Windows keeps these names for devices, whatever ending they have.
RESERVED = {"con", "prn", "aux", "nul"} | {f"{n}{i}" for n in ("com", "lpt") for i in range(10)}


def safe_name(text: str) -> str:
    """A file stem of ASCII letters, digits, dots, hyphens and underscores; never empty.

    Civitai reads only these in `<lora:name:1>`, A1111 splits at commas and colons.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)
    name = re.sub(r"-{2,}", "-", name).strip("-._ ")[:MAX_NAME].rstrip("-._")
    if name.split(".")[0].lower() in RESERVED:
        name = f"lora-{name}"
    return name or "lora"


def one_line(text: object, limit: int = MAX_TEXT) -> str:
    """The text on one line, without control and formatting characters, shortened to the limit."""
    visible = "".join(c if c.isprintable() else " " for c in str(text)[: 8 * limit])
    line = " ".join(visible.split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def words(text: str) -> tuple[str, ...]:
    """The trigger words of a comma-separated list, each once.

    Raises:
        SettingsError: there are more than a site takes, or they are longer.
    """
    found = tuple(dict.fromkeys(filter(None, (one_line(part) for part in text.split(",")))))
    if len(found) > 50 or any(len(word) > 100 for word in found):
        raise SettingsError(
            "The trigger words are too many or too long: up to 50 of up to 100 characters each, "
            "separated by commas. A distilled LoRA usually needs none."
        )
    return found

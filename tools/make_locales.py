"""Writes locales/en/nodeDefs.json from the node classes; says what other languages lack.

    python tools/make_locales.py

The English texts are those of the classes, so run it after a node changes; a test compares. The
other languages are written by hand: translate what is reported, take out what is there no longer.
The panel's words are in web/texts, and a test compares those with its modules.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mounting  # noqa: F401  (makes dpdmd_studio importable)
from dpdmd_studio.comfy_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

LOCALES = Path(__file__).resolve().parents[1] / "locales"
TRANSLATED = ("zh", "ja", "ko")


def english(name: str) -> dict[str, Any]:
    """A node's texts in the form that ComfyUI's pages read."""
    kind: Any = NODE_CLASS_MAPPINGS[name]
    groups = kind.INPUT_TYPES()
    listed = {**groups.get("required", {}), **groups.get("optional", {})}
    names = getattr(kind, "RETURN_NAMES", kind.RETURN_TYPES)
    outputs = zip(names, kind.OUTPUT_TOOLTIPS, strict=True)
    inputs = {n: {"name": n, "tooltip": spec[1]["tooltip"]} for n, spec in listed.items()}
    if any(spec[1].get("control_after_generate") for spec in listed.values()):
        inputs["control_after_generate"] = {"name": "control after generate"}
    return {
        "display_name": NODE_DISPLAY_NAME_MAPPINGS[name],
        "description": kind.DESCRIPTION,
        "inputs": inputs,
        "outputs": {str(i): {"name": n, "tooltip": t} for i, (n, t) in enumerate(outputs)},
    }


def paths(value: Any, above: str = "") -> Iterator[str]:
    """Where texts stand in nested tables, such as "DPDMDRuns.inputs.run.tooltip"."""
    if not isinstance(value, Mapping):
        yield above.removeprefix(".")
        return
    for key, inner in value.items():
        yield from paths(inner, f"{above}.{key}")


def main() -> int:
    """Write the English file; 1 if another language is not complete."""
    texts = {name: english(name) for name in NODE_CLASS_MAPPINGS}
    written = json.dumps(texts, indent=2, ensure_ascii=False) + "\n"
    (LOCALES / "en" / "nodeDefs.json").write_text(written, encoding="utf-8")
    wanted, status = set(paths(texts)), 0
    for language in TRANSLATED:
        file = LOCALES / language / "nodeDefs.json"
        there = set(paths(json.loads(file.read_text(encoding="utf-8"))))
        for path in sorted(wanted ^ there):
            status = 1
            sys.stdout.write(f"{language}: {'missing' if path in wanted else 'obsolete'}: {path}\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())

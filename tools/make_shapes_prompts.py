"""Writes the starter prompts for the embedded shapes teachers: captions of their training side.

    python tools/make_shapes_prompts.py

`app` offers them without knowing the teachers' world, so they are a text file beside the others; a
test compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mounting  # makes dpdmd_studio importable
from shapes_scenes import starter_captions

FILE = mounting.ROOT / "app" / "prompts" / "templates" / "shapes.txt"
COUNT = 400

if __name__ == "__main__":
    FILE.write_text("\n".join(starter_captions(COUNT)) + "\n", encoding="utf-8")

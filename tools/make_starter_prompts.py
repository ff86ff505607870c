"""Writes the starter prompts for the embedded teachers: captions of their training side.

    python tools/make_starter_prompts.py

`app` offers them without knowing the teachers' worlds, so they are text files beside the others;
tests compare.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mounting  # makes dpdmd_studio importable
from dpdmd_studio.trainer.toys.emoji.captions import caption_sample
from shapes_scenes import starter_captions

FOLDER = mounting.ROOT / "app" / "prompts" / "templates"
COUNT = 400

if __name__ == "__main__":
    for name, texts in (
        ("shapes", starter_captions(COUNT)),
        ("emoji", caption_sample(False, COUNT, 0)),
    ):
        (FOLDER / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")

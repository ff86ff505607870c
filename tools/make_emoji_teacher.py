"""Makes the embedded emoji teachers and their judge from pinned packages, for maintainers.

    python tools/make_emoji_teacher.py STAGE --cache CACHE --folder FOLDER

Needs `resvg-py` and npm for the first stage. Stages, each resumable where it was stopped:
    world         the pictures rendered, trainer/assets/emoji-world.json written
    autoencoder   TAESD's structure, hours on two cores
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from shapes_teacher_common import LOG, ROOT

ASSETS = ROOT / "trainer" / "assets"
STAGES = ("world", "autoencoder")


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--cache", type=Path, required=True, help="packages and pictures")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and reports")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)

    from emoji import autoencoder, drawing, pictures, world

    if options.stage == "world":
        LOG.info("%s", world.write(options.cache, ASSETS / "emoji-world.json"))
        return
    drawer = drawing.Drawer(pictures.render(options.cache, world.selection(options.cache)), 64)
    if options.stage == "autoencoder":
        autoencoder.train(options.folder, drawer)


if __name__ == "__main__":
    main()

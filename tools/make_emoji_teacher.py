"""Makes the emoji teacher and its judge from pinned packages, for maintainers.

    python tools/make_emoji_teacher.py STAGE --cache CACHE --folder FOLDER

Needs npm and `resvg-py` to render. Stages, in this order; each goes on where it was stopped:
    world         the pictures rendered, trainer/assets/emoji-world.json written; minutes
    autoencoder   TAESD's structure; an hour or two on two cores
    judge         fitted on real pictures, then checked: its own figures are in judge.json
    bank          latents of many scenes; minutes
    flow          the MMDiT in SD3's layout and its text model, in rounds; hours
    export        the file in FOLDER, in fp16, read back by diffusers
    measure       what it draws, counted by the judge: measure.json, and a sheet to look at
    record        the file and what is known of it among the product's assets

The teacher that predicts noise, with SD 1.x's latents, of the same pictures at 96 pixels begins
with that file and the judge's, and has the same stages but for the first and the third:
    eps-autoencoder, eps-bank, eps, eps-export, eps-measure, eps-record
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import torch
from shapes_teacher_common import LOG, Ranks

STAGES = ("world", "autoencoder", "judge", "bank", "flow", "export", "measure", "record")
EPS_STAGES = ("eps-autoencoder", "eps-bank", "eps", "eps-export", "eps-measure", "eps-record")
ASSET, EPS_ASSET = "emoji-sd3.safetensors", "emoji-sd1.safetensors"


def run(options: argparse.Namespace) -> dict | None:
    """Do one stage; what it has to say, if anything."""
    from dpdmd_studio.trainer.toys.emoji import captions, judging
    from emoji import autoencoder, bank, drawing, export, flow, judge, measure, pictures, spoilt
    from emoji import world as worlds

    stage, folder = options.stage, options.folder
    if stage == "world":
        return worlds.write(options.cache, captions.FACTS)
    if stage == "flow":
        flow.train(folder, bank.Bank(folder / "bank.pt"), ranks_of(options))
        return None
    if stage == "record":
        record(folder / ASSET, export.record(folder, folder / ASSET))
        return None
    if stage == "export":
        size = export.write(folder, folder / ASSET, options.guidance, 28)
        return {"bytes": size, "guidance_scale": options.guidance}
    drawer = drawing.Drawer(pictures.render(options.cache, worlds.selection(options.cache)), 64)
    if stage == "autoencoder":
        autoencoder.train(folder, drawer)
        return None
    codec = autoencoder.load(folder).requires_grad_(False)
    if stage == "bank":
        bank.write(folder / "bank.pt", drawer, codec.encode)
        return None
    if stage == "measure":
        draw = measure.drawing_with(flow.load(folder), codec, options.guidance)
        return {"sheet": measure.write_sheet(draw, folder), "table": measure.table(draw)}
    others = drawing.Drawer(pictures.render(options.cache, worlds.strangers(options.cache)), 64)
    spoiler = spoilt.Spoiler(drawer, others, codec.encode, codec.decode)
    judge.train(folder, spoiler)
    found = judge.check(folder, spoiler)
    judge.write(folder, judging.FILE, options.threshold)
    return found


def run_eps(options: argparse.Namespace) -> dict | None:
    """Do one stage of the teacher that predicts noise; what it has to say, if anything."""
    from emoji import autoencoder, bank, drawing, eps, export, measure, pictures
    from emoji import world as worlds

    stage, folder = options.stage, options.folder
    if stage == "eps":
        eps.train(folder, bank.Bank(folder / "eps-bank.pt"), ranks_of(options))
        return None
    if stage == "eps-export":
        size = export.write_eps(folder, folder / EPS_ASSET, options.guidance, 28)
        return {"bytes": size, "guidance_scale": options.guidance}
    if stage == "eps-record":
        record(folder / EPS_ASSET, export.record_eps(folder, folder / EPS_ASSET))
        return None
    drawn = pictures.render(options.cache, worlds.selection(options.cache))
    drawer = drawing.Drawer(drawn, eps.RESOLUTION)
    if stage == "eps-autoencoder":
        autoencoder.train_narrow(folder, drawer)
        return None
    codec = autoencoder.load(folder, narrow=True).requires_grad_(False)
    if stage == "eps-bank":
        bank.write(folder / "eps-bank.pt", drawer, codec.encode)
        return None
    draw = measure.drawing_with(eps.load(folder), codec, options.guidance, eps.sample)
    found = {"judge": measure.ceiling(drawer, codec), "sheet": measure.write_sheet(draw, folder)}
    return found | {"table": measure.table(draw)}


def record(made: Path, facts: dict) -> None:
    """Put a file and what is known of it among the product's assets."""
    from dpdmd_studio.trainer.toys.emoji import captions

    kept = captions.FACTS.parent / made.name
    kept.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    shutil.copyfile(made, kept)


def ranks_of(options: argparse.Namespace) -> Ranks:
    """This process among those that train together; they meet in a file of the folder."""
    if options.ranks > 1:
        meet = f"file://{(options.folder / 'meeting').resolve()}"
        torch.distributed.init_process_group(
            "gloo", init_method=meet, rank=options.rank, world_size=options.ranks
        )
    return Ranks(options.rank, options.ranks)


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stage", choices=STAGES + EPS_STAGES)
    parser.add_argument("--cache", type=Path, required=True, help="packages and pictures")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and reports")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--threshold", type=float, default=0.7, help="of the judge")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=0, help="of this process, for flow and eps")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    found = run_eps(options) if options.stage in EPS_STAGES else run(options)
    if found is not None:
        LOG.info("%s: %s", options.stage, found)
        (options.folder / f"{options.stage}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

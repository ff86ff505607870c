"""Makes the shapes teacher of the tests, `trainer/assets/shapes-sd1.safetensors`, from nothing.

    python tools/make_shapes_teacher.py all --layout sd3 --folder FOLDER --assets ASSETS
    python tools/make_shapes_teacher.py all --layout sd1 --folder FOLDER --assets ASSETS

Stages, of about an hour or less each on two cores and minutes on a GPU:
    vae        a small autoencoder in TAESD's layout, on images drawn as it goes; the SD1 teacher
               has the decoder of the SD3 one, which must be there, with first layers of its own
    denoiser   a small MMDiT (SD3, flow matching) or UNet (SD1, eps prediction) and its text model
    export     guidance chosen on training captions, the file written and read back
    verify     held-out captions sampled with 30 guided steps and measured; the summary written
A stage that was stopped goes on from its last checkpoint (every three minutes) when called again;
a finished one returns at once.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from shapes_teacher_common import LOG, Training, device

STAGES = ("vae", "denoiser", "export", "verify")


def train_stage(stage: str, options: argparse.Namespace) -> tuple[Training, int, float]:
    """The finished training of a stage, its batch size and its peak learning rate."""
    import shapes_teacher_denoiser as denoiser
    import shapes_teacher_unet as unet
    import shapes_teacher_vae as vae

    folder, seed, compiled = options.folder, options.seed, options.compile
    if options.layout == "sd3":
        module = vae if stage == "vae" else denoiser
        return module.train(folder, seed, compiled), module.BATCH, module.PEAK
    if stage == "denoiser":
        return unet.train(folder, seed, compiled), unet.BATCH, unet.PEAK
    training = unet.train_decoder(folder, seed, asset(options, "sd3"), compiled)
    return training, unet.DECODER_BATCH, unet.DECODER_PEAK


def run_stage(stage: str, options: argparse.Namespace) -> dict:
    """What the stage has to say for the summary."""
    import shapes_teacher_export as sd3_export
    import shapes_teacher_unet_export as sd1_export
    import shapes_teacher_verify as verify

    target = asset(options, options.layout)
    export = sd3_export if options.layout == "sd3" else sd1_export
    if stage in ("vae", "denoiser"):
        training, batch, peak = train_stage(stage, options)
        return {
            "updates_per_cycle": training.cycles,
            "batch": batch,
            "peak_learning_rate": peak,
            "seconds": round(training.seconds),
            "device": f"{device().type}, {options.threads} threads",
            "loss": thinned(training.curve),
        }
    if stage == "export":
        export.write(options.folder, target, 1.0, verify.STEPS)
        scale, table = verify.choose_guidance(export.Models(target))
        size = export.write(options.folder, target, scale, verify.STEPS)
        return {"bytes": size, "guidance_scale": scale, "on_training_captions": table}
    return verify.verify(export.Models(target), target, options.folder)


def asset(options: argparse.Namespace, layout: str) -> Path:
    """Where the teacher of that layout goes."""
    return options.assets / f"shapes-{layout}.safetensors"


def thinned(curve: list, points: int = 30) -> list:
    """At most about `points` entries of a curve, the last one always."""
    step = max(1, len(curve) // points)
    return curve[step - 1 :: step] + (curve[-1:] if len(curve) % step else [])


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--layout", choices=("sd3", "sd1"), default="sd3")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and reports")
    parser.add_argument("--assets", type=Path, required=True, help="where the file goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="fuse kernels; needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        facts = run_stage(stage, options)
        (options.folder / f"{stage}.json").write_text(json.dumps(facts, indent=1))
        LOG.info("%s: %s", stage, facts)
    if options.stage in ("verify", "all"):
        write_summary(options)


def write_summary(options: argparse.Namespace) -> None:
    """All stages' facts in a .json beside the file."""
    from dpdmd_studio.core.files.hashes import file_sha256

    target = asset(options, options.layout)
    summary: dict = {
        "command": "python tools/make_shapes_teacher.py all "
        f"--layout {options.layout} --folder FOLDER",
        "sha256": file_sha256(target),
        "seed": options.seed,
        "torch": torch.__version__,
    }
    for stage in STAGES:
        path = options.folder / f"{stage}.json"
        if path.exists():
            summary[stage] = json.loads(path.read_text())
    text = json.dumps(summary, indent=1)
    target.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    if not summary["verify"]["bars_met"]:
        raise SystemExit("the teacher misses a bar: see verify in the summary")


if __name__ == "__main__":
    main()

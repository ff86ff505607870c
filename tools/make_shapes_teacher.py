"""Makes `trainer/assets/shapes-sd3.safetensors`, the embedded teacher, from nothing.

    python tools/make_shapes_teacher.py all --folder FOLDER

Stages, each at most 40 minutes on two cores and minutes on a GPU:
    vae        a small autoencoder in TAESD's layout, on pictures drawn as it goes
    denoiser   a small MMDiT and its text model, flow matching on that autoencoder's latents
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
from shapes_teacher_common import LOG, ROOT, mount

ASSETS = ROOT / "trainer" / "assets"
STAGES = ("vae", "denoiser", "export", "verify")


def run_stage(stage: str, options: argparse.Namespace) -> dict:
    """What the stage has to say for the summary."""
    import shapes_teacher_denoiser as denoiser
    import shapes_teacher_export as export
    import shapes_teacher_vae as vae
    import shapes_teacher_verify as verify

    folder, target = options.folder, options.assets / "shapes-sd3.safetensors"
    if stage in ("vae", "denoiser"):
        module = vae if stage == "vae" else denoiser
        training = module.train(folder, options.seed, options.compile)
        return {
            "updates_per_cycle": training.cycles,
            "batch": module.BATCH,
            "peak_learning_rate": module.PEAK,
            "seconds": round(training.seconds),
            "device": f"{vae.device().type}, {options.threads} threads",
            "loss": thinned(training.curve),
        }
    if stage == "export":
        export.write(folder, target, 1.0, verify.STEPS)
        scale, table = verify.choose_guidance(verify.read(target))
        size = export.write(folder, target, scale, verify.STEPS)
        return {"bytes": size, "guidance_scale": scale, "on_training_captions": table}
    return verify.verify(target, folder)


def thinned(curve: list, points: int = 30) -> list:
    """At most about `points` entries of a curve, the last one always."""
    step = max(1, len(curve) // points)
    return curve[step - 1 :: step] + (curve[-1:] if len(curve) % step else [])


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and reports")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the file goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="fuse kernels; needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    mount()
    options.folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        facts = run_stage(stage, options)
        (options.folder / f"{stage}.json").write_text(json.dumps(facts, indent=1))
        LOG.info("%s: %s", stage, facts)
    if options.stage in ("verify", "all"):
        write_summary(options.folder, options.assets, options.seed)


def write_summary(folder: Path, assets: Path, seed: int) -> None:
    """All stages' facts in `shapes-sd3.json` beside the file."""
    from dpdmd_studio.core.hashes import file_sha256

    summary: dict = {
        "command": "python tools/make_shapes_teacher.py all --folder FOLDER",
        "sha256": file_sha256(assets / "shapes-sd3.safetensors"),
        "seed": seed,
        "torch": torch.__version__,
    }
    for stage in STAGES:
        path = folder / f"{stage}.json"
        if path.exists():
            summary[stage] = json.loads(path.read_text())
    text = json.dumps(summary, indent=1)
    (assets / "shapes-sd3.json").write_text(text + "\n", encoding="utf-8")
    if not summary["verify"]["bars_met"]:
        raise SystemExit("the teacher misses a bar: see verify in the summary")


if __name__ == "__main__":
    main()

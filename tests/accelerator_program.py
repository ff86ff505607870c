"""Runs on the pretended accelerator, one JSON line of findings for each; see test_accelerator.py.

`python accelerator_program.py FOLDER` reads the name of a case a line: the libraries are loaded and
the device is made once for all.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import conftest  # noqa: F401  (makes dpdmd_studio importable)

HERE = Path(__file__).resolve().parent
RUNS: dict[str, tuple[str, dict]] = {
    "sd1": ("sd1", {"preview_every": 2}),
    "sd3": ("sd3", {"preview_every": 2}),
    "packed": ("sd1", {"base_weights": "int8", "micro_batch_size": 1,
                       "gradient_checkpointing": True}),
    "offloaded": ("sd3", {"base_weights": "int8", "offload_base": True, "offload_optimizer": True}),
    "bfloat16": ("sdxl", {"dtype": "bfloat16", "preview_every": 2}),
}  # fmt: skip


def use_device(device) -> None:
    """Every command that chooses a device gets this one."""
    for name, module in list(sys.modules.items()):
        if name.startswith("dpdmd_studio.trainer.") and hasattr(module, "choose_device"):
            module.choose_device = lambda wanted="auto": device  # type: ignore[attr-defined]


def run_once(folder: Path, device, case: str) -> dict:
    """A run stopped after its third update and taken up again; what it learned."""
    import checkpoints
    import tiny_runs
    from dpdmd_studio.cli import main

    use_device(device)
    family, settings = RUNS[case]
    checkpoint = folder / f"{family}.safetensors"
    if not checkpoint.exists():
        folder.mkdir(parents=True)
        checkpoints.save(checkpoint, checkpoints.file_state(tiny_runs.BUILDERS[family]()))
    few = {"num_steps": 2, "teacher_steps": 4, "fake_updates": 1}
    settings = few | {"dtype": "float32"} | settings  # a GPU would choose bfloat16, a CPU does not
    run = tiny_runs.new_run(folder / str(device), checkpoint, **settings)

    def stop_after_third(progress) -> None:
        if progress.step == 3:
            tiny_runs.request_stop(run)

    assert not tiny_runs.distil(run, stop_after_third).finished
    outcome = tiny_runs.distil(run)
    assert outcome.finished
    devices = {str(p.device.type) for p in outcome.session.call.network.parameters()}
    student = [outcome.session.roles.state("student")[name]
               for name in sorted(outcome.session.roles.state("student"))]  # fmt: skip
    command = ["sample", str(checkpoint), "--lora", str(outcome.lora), "--prompt", "a dog",
               "--seeds", "1", "--resolution", "32x32",
               "--output", str(folder / str(device) / "pictures")]  # fmt: skip
    return {
        "devices": sorted(devices),
        "metrics": [{k: v for k, v in line.items() if isinstance(v, float)}
                    for line in tiny_runs.metrics_of(run)],
        "student": [float(value.norm()) for value in student],
        "previews": len(list(run.path.rglob("*.png"))),
        "sample": main(command),
    }  # fmt: skip


def program() -> None:
    """The cases that are asked for, on the CPU and on the pretended accelerator."""
    import torch
    from pretended.device import register

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    os.environ["DPDMD_HOME"] = str(folder / "home")
    devices = [torch.device("cpu"), register()]
    for case in map(str.strip, sys.stdin):
        try:
            found = {d.type: run_once(folder / case, d, case) for d in devices}
        except Exception:
            found = {"error": traceback.format_exc()}
        sys.stdout.write(json.dumps({"case": case} | found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    program()

"""Worker, job and front end are killed at random moments; nothing is lost, stuck or damaged.

`python benchmarks/kills.py` does the same with more runs and more kills.
"""

from __future__ import annotations

import pytest
from dpdmd_studio.app import jobs
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.core.lora.file import read_lora
from killing import kill_at_random
from tiny_runs import TINY


@pytest.mark.usefixtures("home")
def test_kills_at_random_moments_lose_nothing(files, tmp_path):
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(files["sd3"])),
        config=DistillConfig.from_dict(TINY | {"steps": 3, "save_every": 1}),
        output=str(tmp_path / "student.safetensors"),
    )
    ids = [jobs.submit_distill(request, ["a cat"], "distillation").id]
    ids += [jobs.submit_task("setup", ["--help"], f"task {n}").id for n in range(2)]
    report = kill_at_random(ids, tmp_path, kills=4, seed=3, pause=(0.1, 2.5), patience=120)
    assert report.sound, report
    assert len(report.kills) == 4 and report.loras >= 2
    assert read_lora(tmp_path / "student.safetensors").recipe.num_steps == 4

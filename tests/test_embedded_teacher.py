"""The embedded teacher is what its summary says: small, complete, and good at its one world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dpdmd_studio.core.families import detect
from dpdmd_studio.core.schedule import Levels, trailing_positions
from dpdmd_studio.core.tensor_file import read_header
from dpdmd_studio.trainer.engine.checkpoint import load_checkpoint
from dpdmd_studio.trainer.engine.conditioning import Conditioning
from dpdmd_studio.trainer.engine.demo import TEACHER
from dpdmd_studio.trainer.engine.prompt_cache import encode_prompts
from dpdmd_studio.trainer.engine.sampling import sample_latents
from dpdmd_studio.trainer.engine.session import default_guidance
from dpdmd_studio.trainer.engine.shapes import caption_sample
from dpdmd_studio.trainer.engine.shapes_measure import adherence, measure
from dpdmd_studio.trainer.engine.vae import decode

LARGEST_FILE = 16_000_000


@pytest.fixture(scope="module")
def summary() -> dict:
    return json.loads(TEACHER.with_suffix(".json").read_text(encoding="utf-8"))


def test_it_is_an_sd3_checkpoint_of_the_promised_size():
    assert TEACHER.stat().st_size <= LARGEST_FILE
    found = detect(read_header(TEACHER))
    assert (found.family, found.resolution, found.vae) == ("sd3", 64, "tiny")
    assert found.text_encoders == ("clip_l",) or found.text_encoders


def test_its_summary_belongs_to_it_and_meets_the_bars(summary):
    from dpdmd_studio.core.hashes import file_sha256

    assert summary["sha256"] == file_sha256(TEACHER)
    found = summary["verify"]
    assert found["held_out"]["pictures"] >= 1000 and found["steps"] == 30
    assert found["held_out"]["match"] >= 0.95
    assert min(found["held_out"]["relative_entropy"].values()) >= 0.85
    assert found["round_trip"]["same"] >= 0.99


def test_held_out_captions_come_out_as_said(tmp_path):
    """A recount of the summary's main number on few pictures, through the ordinary loading path."""
    checkpoint = load_checkpoint(TEACHER, dtype=torch.float32, device="cpu")
    captions = caption_sample(held_out=True, count=64, seed=11)
    encoded = encode_prompts(
        checkpoint,
        [*captions, ""],
        clip_skip=1,
        cache_folder=Path(tmp_path),
        device=checkpoint.device,
        report=lambda _: None,
    )
    latents = sample_latents(
        checkpoint.call(),
        Conditioning.cat([encoded[text] for text in captions]),
        encoded[""],
        list(range(700, 700 + len(captions))),
        (checkpoint.detection.latent_channels, 8, 8),
        Levels.at_positions(checkpoint.schedule, trailing_positions(30)).sigmas,
        guidance_scale=default_guidance(checkpoint),
    )
    found = [measure(picture) for picture in decode(checkpoint, latents)]
    good = sum(adherence(text, one) for text, one in zip(captions, found, strict=True))
    assert good >= 56  # 95 of 100 give at least this many of 64 in all but one of 500 trials

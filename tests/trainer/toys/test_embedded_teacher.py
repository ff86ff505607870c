"""The shapes teacher is what its summary says: small, complete, good at its one world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dpdmd_studio.cli import main
from dpdmd_studio.core.diffusion.guidance import Guidance
from dpdmd_studio.core.diffusion.schedule import Levels, trailing_positions
from dpdmd_studio.core.families import detect
from dpdmd_studio.core.files.hashes import file_sha256
from dpdmd_studio.core.files.tensor_file import read_header
from dpdmd_studio.trainer.commands.open_session import default_guidance
from dpdmd_studio.trainer.evaluation.sampling import Trajectory, sample_latents
from dpdmd_studio.trainer.loading import encoders as files
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from dpdmd_studio.trainer.loading.decoding import decode
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from dpdmd_studio.trainer.text import encoders as prompts
from dpdmd_studio.trainer.text.cache import encode_prompts
from dpdmd_studio.trainer.toys import encoder, shapes
from dpdmd_studio.trainer.toys.measures import adherence, measure
from dpdmd_studio.trainer.toys.shapes import caption_sample

ASSETS = Path(shapes.__file__).parents[1] / "assets"
LARGEST_FILE = 8_000_000


@pytest.fixture
def teacher() -> Path:
    return ASSETS / "shapes-sd1.safetensors"


def test_it_is_a_checkpoint_of_its_family_and_of_the_promised_size(teacher):
    found = detect(read_header(teacher))
    assert (found.family, found.prediction, found.resolution, found.vae) == (
        "sd1",
        "eps",
        64,
        "tiny",
    )
    assert found.text_encoders == ("dpdmd",)
    assert teacher.stat().st_size <= LARGEST_FILE


def test_its_summary_belongs_to_it_and_meets_the_bars(teacher):
    summary = json.loads(teacher.with_suffix(".json").read_text(encoding="utf-8"))
    assert summary["sha256"] == file_sha256(teacher)
    found = summary["verify"]
    assert found["held_out"]["pictures"] >= 1000 and found["steps"] == 30
    assert found["held_out"]["match"] >= 0.95
    assert min(found["held_out"]["relative_entropy"].values()) >= 0.85
    assert min(found["one_caption_many_seeds"]["relative_entropy"].values()) >= 0.85
    assert found["round_trip"]["same"] >= 0.99


def test_commands_make_its_encoder_known(teacher, tmp_path, monkeypatch):
    monkeypatch.delitem(files.KINDS, encoder.KIND, raising=False)
    monkeypatch.delitem(prompts.KINDS, encoder.KIND, raising=False)
    words = ["sample", str(teacher), "--prompt", "a red circle", "--seeds", "1", "--steps", "1"]
    assert main([*words, "--device", "cpu", "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_held_out_captions_come_out_as_said(teacher, tmp_path):
    """A recount of the summary's main number on few pictures, through the ordinary loading path."""
    encoder.register()
    checkpoint = open_checkpoint(teacher, dtype=torch.float32, device="cpu").load()
    captions = caption_sample(held_out=True, count=32, seed=11)
    encoded = encode_prompts(
        checkpoint,
        [*captions, ""],
        clip_skip=1,
        cache_folder=Path(tmp_path),
    )
    sigmas = Levels.at_positions(checkpoint.schedule, trailing_positions(30)).sigmas
    latents = sample_latents(
        checkpoint.call(),
        PromptPair.of(Conditioning.cat([encoded[text] for text in captions]), encoded[""]),
        list(range(700, 700 + len(captions))),
        (checkpoint.detection.latent_channels, 8, 8),
        Trajectory(sigmas, Guidance(default_guidance(checkpoint))),
    )
    found = [measure(picture) for picture in decode(checkpoint, latents)]
    good = sum(adherence(text, one) for text, one in zip(captions, found, strict=True))
    assert good >= 27  # 95 of 100 give at least this many of 32 in all but one of 1100 trials

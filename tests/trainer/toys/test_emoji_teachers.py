"""The emoji teachers are what their summaries say, and need their guidance and their steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dpdmd_studio.core.diffusion.guidance import Guidance
from dpdmd_studio.core.diffusion.schedule import Levels, trailing_positions
from dpdmd_studio.core.families import detect, stated_settings
from dpdmd_studio.core.files.hashes import file_sha256
from dpdmd_studio.core.files.tensor_file import read_header
from dpdmd_studio.trainer.commands.open_session import default_guidance
from dpdmd_studio.trainer.evaluation.sampling import Trajectory, sample_latents
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from dpdmd_studio.trainer.loading.decoding import decode
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from dpdmd_studio.trainer.text.cache import encode_prompts
from dpdmd_studio.trainer.toys import encoder
from dpdmd_studio.trainer.toys.emoji.captions import caption_sample
from dpdmd_studio.trainer.toys.emoji.counts import count_emoji

ASSETS = Path(encoder.__file__).parents[1] / "assets"
FACTS = {"sd3": ("flow", 64, 28_000_000), "sd1": ("eps", 96, 28_000_000)}


@pytest.fixture(params=FACTS)
def teacher(request) -> Path:
    return ASSETS / f"emoji-{request.param}.safetensors"


def test_it_is_a_checkpoint_of_its_family_and_of_the_promised_size(teacher):
    found = detect(read_header(teacher))
    assert found.family in teacher.stem and found.text_encoders == ("dpdmd",)
    prediction, resolution, largest = FACTS[found.family]
    assert (found.prediction, found.resolution, found.vae) == (prediction, resolution, "tiny")
    assert teacher.stat().st_size <= largest
    assert "Twemoji" in stated_settings(teacher)["credits"]


def test_all_embedded_files_together_stay_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 56_000_000


def test_its_summary_belongs_to_it_and_says_that_it_needs_guidance_and_steps(teacher):
    summary = json.loads(teacher.with_suffix(".json").read_text(encoding="utf-8"))
    assert summary["sha256"] == file_sha256(teacher)
    table = summary["measure_figures"]["table"]
    whole, bare = table["28 steps, guided"], table["28 steps, no guidance"]
    few = table["4 steps, no guidance"]
    assert whole["names"]["valid"] >= 0.85 and whole["names"]["adherence"] >= 0.8
    assert whole["open"]["adherence"] >= 0.75 and whole["open"]["diversity"] >= 8
    for kind, steps in (("names", 0.35), ("open", 0.4)):
        assert bare[kind]["adherence"] <= whole[kind]["adherence"] - 0.2
        assert few[kind]["adherence"] <= whole[kind]["adherence"] - steps


def test_names_come_out_as_asked_with_guidance_alone(teacher, tmp_path):
    """A recount on few images, through the ordinary loading path."""
    encoder.register()
    checkpoint = open_checkpoint(teacher, dtype=torch.float32, device="cpu").load()
    texts = caption_sample(True, 48, 11)[::2]
    encoded = encode_prompts(checkpoint, [*texts, ""], clip_skip=1, cache_folder=tmp_path)
    side = checkpoint.detection.resolution // 8

    def right(steps: int, scale: float) -> float:
        sigmas = Levels.at_positions(checkpoint.schedule, trailing_positions(steps)).sigmas
        latents = sample_latents(
            checkpoint.call(),
            PromptPair.of(Conditioning.cat([encoded[text] for text in texts]), encoded[""]),
            list(range(700, 700 + len(texts))),
            (checkpoint.detection.latent_channels, side, side),
            Trajectory(sigmas, Guidance(scale)),
        )
        images = decode(checkpoint, latents)
        return count_emoji(texts, [[image] for image in images], [])["adherence"]

    assert right(28, default_guidance(checkpoint)) >= 0.7 > 0.6 >= right(4, 1.0)

"""An embedded teacher with any LoRAs on it, ready to draw captions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mounting
import torch
from dpdmd_studio.app.library.home import prompt_cache
from dpdmd_studio.core.diffusion.schedule import Levels, few_step_positions, trailing_positions
from dpdmd_studio.core.families import stated_settings
from dpdmd_studio.core.lora.file import LoraFile
from dpdmd_studio.trainer.evaluation.evaluate import (
    ArmSetting,
    EvaluationSet,
    ImageSampler,
    Stage,
)
from dpdmd_studio.trainer.evaluation.lora_switch import LoraSwitch
from dpdmd_studio.trainer.evaluation.run_evaluation import BATCH
from dpdmd_studio.trainer.loading.checkpoint import LoadedCheckpoint, open_checkpoint
from dpdmd_studio.trainer.memory.portions import Portions
from dpdmd_studio.trainer.text.cache import encode_prompts
from dpdmd_studio.trainer.toys import encoder

ASSETS = mounting.ROOT / "trainer" / "assets"
SEEDS = range(6_000_000, 6_000_009)


def asset(teacher: str) -> Path:
    """The embedded checkpoint "sd3" or "sd1"."""
    return ASSETS / f"emoji-{teacher}.safetensors"


def say(text: str) -> None:
    """To stderr, so that tables can be piped."""
    sys.stderr.write(text + "\n")


@dataclass
class Easel:
    """Draws arms of one embedded teacher on fixed captions and seeds."""

    checkpoint: LoadedCheckpoint
    sampler: ImageSampler
    material: EvaluationSet
    guidance_scale: float
    teacher_steps: int

    @classmethod
    def of(
        cls,
        teacher: str,
        captions: Sequence[str],
        loras: Mapping[str, Sequence[tuple[LoraFile, float]]] | None = None,
    ) -> Easel:
        """The teacher "sd3" or "sd1"; `loras`: by name, the files on together, with strengths."""
        encoder.register()
        checkpoint = open_checkpoint(asset(teacher), dtype=torch.float32, device="cpu").load()
        encoded = encode_prompts(
            checkpoint,
            [*captions, ""],
            clip_skip=1,
            cache_folder=prompt_cache(),
        )
        facts, size = stated_settings(asset(teacher)), checkpoint.detection.resolution // 8
        sampler = ImageSampler(
            checkpoint=checkpoint,
            call=checkpoint.call(),
            use=LoraSwitch(checkpoint, loras or {}).use,
            negative=encoded[""],
            latent_shape=(checkpoint.detection.latent_channels, size, size),
            portions=Portions(checkpoint.device, BATCH),
        )
        conditioning = tuple(encoded[text] for text in captions)
        material = EvaluationSet(tuple(captions), conditioning, tuple(SEEDS))
        guidance, steps = float(facts["guidance_scale"]), int(facts["steps"])
        return cls(checkpoint, sampler, material, guidance, steps)

    def guided(self, name: str) -> ArmSetting:
        """The teacher at its own steps and guidance."""
        positions = trailing_positions(self.teacher_steps)
        sigmas = Levels.at_positions(self.checkpoint.schedule, positions).sigmas
        stage = Stage(weights="teacher", sigmas=sigmas, guidance_scale=self.guidance_scale)
        return ArmSetting(name=name, note="", stages=(stage,))

    def few(self, name: str, weights: str = "teacher", steps: int = 4) -> ArmSetting:
        """Few steps without guidance, with whatever LoRAs go by `weights`."""
        sigmas = self.checkpoint.schedule.sigma_at(few_step_positions(steps))
        return ArmSetting(name=name, note="", stages=(Stage(weights=weights, sigmas=sigmas),))

"""LoRAs and facts to make packages of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import lora_networks
import torch
from dpdmd_studio.app.share.facts import CheckpointFacts, ImageFacts, PackageFacts
from dpdmd_studio.app.share.folder import package_texts
from dpdmd_studio.cli import main
from dpdmd_studio.core.diffusion.schedule import VPSchedule, few_step_positions
from dpdmd_studio.core.families import Detection, Family
from dpdmd_studio.core.files.hashes import FileHashes
from dpdmd_studio.core.lora.file import NewLora, write_lora
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.trainer.commands.markdown import markdown_to_html
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from torch import nn

TITLES = {"sd1": "SD 1.x", "sdxl": "SDXL", "sd3": "SD3.5 medium", "anima": "Anima"}
FLOWS = ("sd3", "anima")
HOSTILE = '<script>alert(1)</script> **b** [x](http://e.example) "q" `c` | # 日本'


def recipe(family: str, **changes):
    """A recipe whose levels plain hosts walk."""
    plain = lora_networks.RECIPES[family]
    if family not in FLOWS:
        sigmas = VPSchedule().sigma_at(few_step_positions(plain.num_steps)).tolist()
        plain = dataclasses.replace(plain, sigmas=tuple(sigmas), plain_host="")
    return dataclasses.replace(plain, **{"plain_host": "", **changes})


def student(folder: Path, checkpoint: Path, *, name: str = "few", seed: int = 1, **changes) -> Path:
    """A LoRA with random weights and a recipe for the SD 1.x checkpoint."""
    plain = open_checkpoint(checkpoint, dtype=torch.float32, device="cpu").load()
    pairs = lora_networks.random_pairs(plain.network, plain.family, plain.config, seed=seed)
    path = folder / f"{name}.safetensors"
    contract = recipe("sd1", resolutions=((32, 32),), **changes)
    return write_lora(path, NewLora(plain.family, plain.config, pairs, contract))


def package(*arguments) -> int:
    return main(["package", *map(str, arguments)])


def texts_of(given: PackageFacts) -> dict[str, str]:
    """Every text of the package, as the worker writes it."""
    return package_texts(given, markdown_to_html)


def anima_facts(*, denoiser: str = "anima.safetensors", **changes) -> PackageFacts:
    """Those of an Anima LoRA, its parts a file each."""
    given = facts("anima", label="Anima", **changes)
    detection = dataclasses.replace(given.checkpoint.detection, text_encoders=("llm_adapter",))
    checkpoint = dataclasses.replace(
        given.checkpoint, file=denoiser, detection=detection,
        text_encoders=("qwen_3_06b_base.safetensors",),
    )  # fmt: skip
    return dataclasses.replace(given, checkpoint=checkpoint)


def facts(family: str, **changes) -> PackageFacts:
    """Facts of a package of that family, as data."""
    size = 512 if family == "sd1" else 1024
    detection = Detection(
        family=family,  # type: ignore[arg-type]
        title=TITLES[family],
        prediction="flow" if family in FLOWS else "eps",
        latent_channels=16 if family in FLOWS else 4,
        denoiser_prefix="",
        resolution=size,
        resolution_multiple=8,
    )
    picture = ImageFacts(
        file="pictures/01.png", prompt="a {red} cat", seed=7, width=size, height=size
    )
    values = {
        "name": "few",
        "title": "Few",
        "author": "",
        "license": "",
        "recipe": recipe(family),
        "checkpoint": CheckpointFacts(file="base.safetensors", name="base", detection=detection),
        "file_format": "kohya",
        "hashes": FileHashes("ab" * 32, "12345678", "cd" * 32),
        "bytes": 2048,
        "label": "Other",
        "images": (picture,),
    }
    return PackageFacts(**(values | changes))


def random_few_step(folder: Path, network: nn.Module, facts: Family) -> Path:
    """A random LoRA of a flow's network, and prompts.txt beside it."""
    config = dict(network.config)  # type: ignore[arg-type]
    pairs = lora_networks.random_pairs(network, facts, config)
    recipe = default_recipe(facts.name, "flow")
    (folder / "prompts.txt").write_text("a cat\na dog\na bird\na fish\na horse\na cow")
    return write_lora(folder / "few.safetensors", NewLora(facts, config, pairs, recipe))


def packaged_texts(lora: Path, output: Path, *model: object) -> dict[str, str]:
    """Every text of a package of that LoRA, by the file's name."""
    words = ("--prompts", lora.parent / "prompts.txt", "--count", 6, "--device", "cpu")
    assert package(lora, *model, *words, "--output", output) == 0
    files = [path for path in output.iterdir() if path.suffix in (".md", ".txt", ".json", ".info")]
    return {path.name: path.read_text(encoding="utf-8") for path in files}

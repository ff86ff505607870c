"""`package` of a Z-Image LoRA: what sites, hosts and diffusers are told of it is true."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import diffusers
import pytest
import yaml
from dpdmd_studio.core.families import zimage as facts
from dpdmd_studio.core.files.tensor_file import read_header
from share_packages import packaged_texts, random_few_step

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    """In a folder with the files of the model that it is for."""
    folder = checkpoints.zimage_folder(tmp_path_factory.mktemp("zimage"))
    return random_few_step(folder, checkpoints.zimage().denoiser, facts.FAMILY)


@pytest.fixture(scope="module")
def texts(lora, tmp_path_factory) -> dict[str, str]:
    """Every text of the package, by the file's name."""
    folder, output = lora.parent, tmp_path_factory.mktemp("out") / "package"
    return packaged_texts(
        lora, output, folder / "z_image.safetensors", "--qwen", folder / "qwen_3_4b.safetensors",
        "--vae", folder / "ae.safetensors",
    )  # fmt: skip


def test_the_site_is_told_its_label_and_licence(texts):
    assert json.loads(texts["few.civitai.info"])["baseModel"] == "ZImageBase"
    assert "choose ZImageTurbo" in texts["CIVITAI.txt"]
    front = yaml.safe_load(texts["README.md"].split("---\n")[1])
    assert front["base_model"] == "Tongyi-MAI/Z-Image"
    assert (front["license"], front["license_name"]) == ("other", "apache-2.0")
    assert "z-image" in front["tags"] and "stable-diffusion" not in front["tags"]


def test_hosts_are_told_what_they_do_with_it(texts):
    said = texts["README.md"]
    assert "not for these" not in said  # its names are the hosts'
    assert "ModelSamplingAuraFlow with shift 3" in said and "ModelSamplingSD3" not in said
    assert "Forge Neo alone knows Z-Image" in said
    nodes = json.loads(texts["workflow.json"])["nodes"]
    loaders = {node["type"]: node["widgets_values"][0] for node in nodes if "oader" in node["type"]}
    assert loaders == {
        "UNETLoader": "z_image.safetensors",
        "CLIPLoader": "qwen_3_4b.safetensors",
        "VAELoader": "ae.safetensors",
        "LoraLoaderModelOnly": "few.safetensors",
    }
    (loader,) = [node for node in nodes if node["type"] == "CLIPLoader"]
    assert loader["widgets_values"][1] == "lumina2"


def test_diffusers_reads_every_module_of_the_file(texts, lora):
    name = facts.FAMILY.sharing.pipeline
    assert f"`{name}` takes the file by `load_lora_weights`" in texts["README.md"]
    read = getattr(diffusers, name).lora_state_dict(str(lora))
    assert len(read) == len(read_header(lora).tensors)
    ours = set(dict(facts.FAMILY.layout.parameters(dict(checkpoints.zimage().denoiser.config))))
    modules = {key.removeprefix("transformer.").rsplit(".lora_", 1)[0] for key in read}
    assert {f"{module}.weight" for module in modules} <= ours

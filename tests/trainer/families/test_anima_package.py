"""`package` of an Anima LoRA: what sites, hosts and diffusers are told of it is true."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import diffusers
import pytest
import yaml
from dpdmd_studio.core.families import anima as facts
from dpdmd_studio.core.files.tensor_file import read_header
from share_packages import packaged_texts, random_few_step

pytestmark = pytest.mark.usefixtures("home")
LICENSE = "CircleStone Labs Non-Commercial License"


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    """In a folder with the files of the model that it is for."""
    folder = checkpoints.anima_folder(tmp_path_factory.mktemp("anima"))
    return random_few_step(folder, checkpoints.anima().denoiser, facts.FAMILY)


@pytest.fixture(scope="module")
def texts(lora, tmp_path_factory) -> dict[str, str]:
    """Every text of the package, by the file's name."""
    folder, output = lora.parent, tmp_path_factory.mktemp("out") / "package"
    return packaged_texts(
        lora, output, folder / "anima.safetensors",
        "--qwen", folder / "qwen_3_06b_base.safetensors", "--vae", folder / "vae.safetensors",
    )  # fmt: skip


def test_the_site_is_told_animas_label_and_licence(texts):
    assert json.loads(texts["few.civitai.info"])["baseModel"] == "Anima"
    assert "Base model           Anima\n" in texts["CIVITAI.txt"]
    assert "Clip skip            leave empty" in texts["CIVITAI.txt"]
    for name in ("README.md", "description.md", "CIVITAI.txt", "few.json"):
        said = texts[name]
        assert LICENSE in said and "shared under the same licence" in said, name
        assert "Apache" not in said and "from a Anima" not in said
    front = yaml.safe_load(texts["README.md"].split("---\n")[1])
    assert front["base_model"] == "circlestone-labs/Anima"
    assert front["license"] == "other"
    assert front["license_name"] == "circlestone-labs-non-commercial-license"
    assert front["license_link"].endswith("circlestone-labs/Anima/blob/main/LICENSE.md")
    assert "anima" in front["tags"] and "stable-diffusion" not in front["tags"]


def test_hosts_are_told_what_they_do_with_it(texts):
    said = texts["README.md"]
    assert "not for these" not in said  # its names are the hosts'
    assert "ModelSamplingAuraFlow with shift 3" in said and "ModelSamplingSD3" not in said
    assert "Forge Neo alone knows Anima" in said
    nodes = json.loads(texts["workflow.json"])["nodes"]
    loaders = {node["type"]: node["widgets_values"][0] for node in nodes if "oader" in node["type"]}
    assert loaders == {
        "UNETLoader": "anima.safetensors",
        "CLIPLoader": "qwen_3_06b_base.safetensors",
        "VAELoader": "vae.safetensors",
        "LoraLoaderModelOnly": "few.safetensors",
    }


def test_diffusers_is_named_by_a_class_that_it_has_and_that_reads_the_file(texts, lora):
    name = facts.FAMILY.sharing.pipeline
    assert f"`{name}` takes the file by `load_lora_weights`" in texts["README.md"]
    assert "```python" not in texts["README.md"]
    read = getattr(diffusers, name).lora_state_dict(str(lora))
    assert all(key.startswith("transformer.") and "lora" in key for key in read)
    assert len(read) == len(read_header(lora).tensors)
    ours = set(dict(facts.FAMILY.layout.parameters(dict(checkpoints.anima().denoiser.config))))
    modules = {key.removeprefix("transformer.").rsplit(".lora_", 1)[0] for key in read}
    assert {f"{module}.weight" for module in modules} <= ours

"""Diffusers folders as hubs ship them: which copy of the weights is read, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import checkpoints
import pytest
from dpdmd_studio.app.estimate import bytes_in_16_bit
from dpdmd_studio.core.errors import CheckpointError
from dpdmd_studio.core.families import identify, read_folder
from safetensors.torch import load_file, save_file

MAKERS = {
    "sd1": checkpoints.sd1,
    "sdxl": checkpoints.sdxl,
    "sd3": checkpoints.sd3,
    "sd35": lambda: checkpoints.sd3(medium35=True, with_t5=False),
}
UNET = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of each family, not to be changed."""
    place = tmp_path_factory.mktemp("folders")
    return {name: checkpoints.save_folder(place / name, make()) for name, make in MAKERS.items()}


@pytest.fixture
def folder(whole, tmp_path):
    """Makes a copy of a family's folder that may be changed."""
    return lambda name: Path(shutil.copytree(whole[name], tmp_path / "model"))


def in_shards(place: Path, first: str, second: str) -> dict[str, str]:
    """Put the weights there into two files of these names; the weight_map of an index."""
    (file,) = place.glob("*.safetensors")
    state = load_file(file)
    file.unlink()
    names = sorted(state)
    halves = {first: names[: len(names) // 2], second: names[len(names) // 2 :]}
    for shard, keys in halves.items():
        save_file({key: state[key] for key in keys}, place / shard)
    return {key: shard for shard, keys in halves.items() for key in keys}


SHARDED = {
    f"{UNET}.safetensors.index.json": f"{UNET}-0000{{}}-of-00002.safetensors",
    f"{UNET}.safetensors.index.fp16.json": f"{UNET}.fp16-0000{{}}-of-00002.safetensors",
    f"{UNET}.fp16.safetensors.index.json": f"{UNET}-0000{{}}-of-00002.fp16.safetensors",
    f"{UNET}.safetensors.index.non_ema.json": f"{UNET}.non_ema-0000{{}}-of-00002.safetensors",
    "model.safetensors.index.int16.json": "model.int16-0000{}-of-00002.safetensors",
}


@pytest.mark.parametrize("index", SHARDED)
@pytest.mark.parametrize("with_index", [True, False])
def test_shards_are_found_under_every_naming(index, with_index, folder):
    path = folder("sdxl")
    place, name = path / "unet", SHARDED[index]
    expected = {key for file in read_folder(path).component("unet").files for key in file.tensors}
    weight_map = in_shards(place, name.format(1), name.format(2))
    if with_index:
        (place / index).write_text(json.dumps({"weight_map": weight_map}))
    files = read_folder(path).component("unet").files
    assert {key for file in files for key in file.tensors} == expected
    assert identify(path).family == "sdxl"
    (place / name.format(2)).unlink()
    with pytest.raises(CheckpointError, match=r"lacks .*00002-of-00002.*speaks"):
        identify(path)


def test_of_several_copies_the_first_whole_one_is_read(folder, whole):
    path = folder("sd1")
    place = path / "unet"
    plain = place / f"{UNET}.safetensors"
    for variant in ("bf16", "fp16", "ema"):
        shutil.copy(plain, place / f"{UNET}.{variant}.safetensors")

    once = bytes_in_16_bit(whole["sd1"])
    assert bytes_in_16_bit(path) == once

    def chosen() -> str:
        return read_folder(path).component("unet").files[0].path.name

    assert chosen() == plain.name
    plain.unlink()
    # what a download of "*.json" and "*.fp16*" leaves: an index whose shards are not there
    shards = {"weight_map": {"conv_in.weight": f"{UNET}-00001-of-00002.safetensors"}}
    (place / f"{UNET}.safetensors.index.json").write_text(json.dumps(shards))
    assert chosen() == f"{UNET}.fp16.safetensors"
    for variant in ("fp16", "bf16"):
        (place / f"{UNET}.{variant}.safetensors").unlink()
    assert chosen() == f"{UNET}.ema.safetensors"


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_part_without_weights_is_named_by_whoever_asks_what_the_folder_is(part, folder):
    path = folder("sd1")
    next((path / part).glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=rf"{part}/ holds no .safetensors weights"):
        identify(path)

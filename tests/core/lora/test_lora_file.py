"""A written LoRA is the trained one at strength 1.0: here, and wherever it is loaded."""

import hashlib
import json
import struct

import lora_networks
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from dpdmd_studio.core.errors import LoraError, NonFiniteError, OutputError
from dpdmd_studio.core.files import hashes
from dpdmd_studio.core.lora import file as lora_file
from dpdmd_studio.core.lora.file import (
    NewLora,
    lora_deltas,
    merge_lora,
    parameter_shapes,
    read_lora,
    write_lora,
)
from dpdmd_studio.core.lora.math import LoraPair, block_diagonal, cast, delta
from dpdmd_studio.core.lora.metadata import TrainingFacts, training_metadata
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, save

NAMES = ["sd1", "sdxl", "sd3"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These networks are far too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=NAMES)
def trained(request):
    """A network, its family and configuration, LoRA weights, and the merged network's output."""
    network, family, config = lora_networks.build(request.param)
    pairs = lora_networks.random_pairs(network, family, config)
    merged, _, _ = lora_networks.build(request.param)
    merge_lora(merged, lora_networks.by_parameter(pairs))
    output = lora_networks.run(merged, request.param)
    assert not torch.allclose(output, lora_networks.run(network, request.param), atol=1e-2)
    return request.param, family, config, pairs, output


def saved(path, trained, metadata=None, **options):
    name, family, config, pairs, _ = trained
    lora = NewLora(family, config, pairs, lora_networks.RECIPES[name], metadata or {})
    return write_lora(path, lora, **options)


def applied(path, name, strength=1.0):
    network, family, config = lora_networks.build(name)
    merge_lora(
        network, lora_deltas(read_lora(path), family, config, parameter_shapes(network), strength)
    )
    return lora_networks.run(network, name)


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_a_lora_read_back_gives_the_trained_output(trained, tmp_path, format):
    path = saved(tmp_path / "a.safetensors", trained, dtype=torch.float32, format=format)
    torch.testing.assert_close(applied(path, trained[0]), trained[-1], rtol=1e-4, atol=1e-5)


def test_half_precision_costs_no_more_than_its_rounding(trained, tmp_path):
    path = saved(tmp_path / "a.safetensors", trained)
    torch.testing.assert_close(applied(path, trained[0]), trained[-1], rtol=2e-2, atol=1e-2)


def test_merged_weights_equal_an_injected_peft_adapter(trained):
    name, _, _, pairs, output = trained
    network, _, _ = lora_networks.build(name)
    inject_adapter_in_model(
        LoraConfig(
            r=3,
            target_modules=list(pairs),
            alpha_pattern={f"^{k}$": 3 * p.scale for k, p in pairs.items()},
        ),
        network,
    )
    for module, pair in pairs.items():
        layer = network.get_submodule(module)
        layer.lora_A["default"].weight.data.copy_(pair.down)
        layer.lora_B["default"].weight.data.copy_(pair.up)
    torch.testing.assert_close(lora_networks.run(network, name), output, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_diffusers_loads_a_kohya_file_as_trained(name, tmp_path):
    network, family, config = lora_networks.build(name)
    pairs = lora_networks.random_pairs(network, family, config)
    path = tmp_path / "a.safetensors"
    write_lora(
        path, NewLora(family, config, pairs, lora_networks.RECIPES[name]), dtype=torch.float32
    )
    pipeline = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[name]
    state, alphas = pipeline.lora_state_dict(load_file(path), unet_config=network.config)[:2]
    assert len(state) == 2 * len(pairs)
    pipeline.load_lora_into_unet(state, alphas, network)
    merged, _, _ = lora_networks.build(name)
    merge_lora(merged, lora_networks.by_parameter(pairs))
    expected = lora_networks.run(merged, name)
    torch.testing.assert_close(lora_networks.run(network, name), expected, rtol=1e-3, atol=1e-4)


def test_diffusers_loads_the_peft_form_as_trained(trained, tmp_path):
    name, family, _, pairs, output = trained
    path = saved(tmp_path / "a.safetensors", trained, dtype=torch.float32, format="peft")
    network, _, _ = lora_networks.build(name)
    prefix = family.lora.peft_prefix.rstrip(".")
    network.load_lora_adapter(load_file(path), prefix=prefix)
    assert sum("lora_A" in key for key in network.state_dict()) == len(pairs)
    torch.testing.assert_close(lora_networks.run(network, name), output, rtol=1e-3, atol=1e-4)


def test_strength_scales_the_change(trained, tmp_path):
    name, _, _, pairs, _ = trained
    path = saved(tmp_path / "a.safetensors", trained, dtype=torch.float32)
    network, family, config = lora_networks.build(name)
    shapes = lora_networks.weight_shapes(network)
    deltas = lora_deltas(read_lora(path), family, config, parameter_shapes(network), 0.5)
    half = lora_networks.by_module(deltas)
    assert half.keys() == pairs.keys()
    for module, pair in half.items():
        whole = delta(pairs[module], shapes[module])
        torch.testing.assert_close(delta(pair, shapes[module]), whole / 2)


def test_a_lora_of_zeros_leaves_every_bit(trained, tmp_path):
    name, family, config, pairs, _ = trained
    zeros = {k: LoraPair(p.down, torch.zeros_like(p.up), p.scale) for k, p in pairs.items()}
    path = tmp_path / "zero.safetensors"
    write_lora(path, NewLora(family, config, zeros, lora_networks.RECIPES[name]))
    untouched, _, _ = lora_networks.build(name)
    assert torch.equal(applied(path, name), lora_networks.run(untouched, name))


def test_a_fused_update_is_exactly_the_separate_ones():
    parts = {p: LoraPair(torch.randn(2, 5), torch.randn(4, 2), 0.5) for p in range(3)}
    fused = block_diagonal(parts)
    assert fused.rank == 6
    separate = torch.cat([0.5 * parts[p].up @ parts[p].down for p in range(3)])
    torch.testing.assert_close(fused.up @ fused.down, separate)
    del parts[1]
    lacking = block_diagonal(parts)
    assert torch.equal((lacking.up @ lacking.down)[4:8], torch.zeros(4, 5))


def test_parts_of_unequal_size_are_fused_each_in_its_own_rows():
    rows = (8, 2, 4)
    parts = {i: LoraPair(torch.randn(3, 5), torch.randn(n, 3), 0.5) for i, n in enumerate(rows)}
    fused = block_diagonal(parts, (4, 1, 2))
    separate = torch.cat([delta(pair, torch.Size((rows[i], 5))) for i, pair in parts.items()])
    torch.testing.assert_close(fused.up @ fused.down, separate)
    with pytest.raises(LoraError, match="in the ratio"):
        block_diagonal(parts)


@pytest.mark.parametrize("exponent", [-12, 0, 12])
def test_half_precision_never_overflows_or_vanishes(exponent):
    pair = LoraPair(torch.randn(3, 8) * 2.0**exponent, torch.randn(8, 3) * 4.0**-exponent * 1000)
    stored = cast(pair, torch.float16, "x")
    assert bool(torch.isfinite(stored.down).all() & torch.isfinite(stored.up).all())
    exact = pair.up @ pair.down
    error = (stored.up.float() @ stored.down.float() - exact).abs().max() / exact.abs().max()
    assert float(error) < 1e-2


def test_weights_that_are_not_numbers_are_never_written(trained, tmp_path):
    name, family, config, pairs, _ = trained
    module = next(iter(pairs))
    for value in (float("nan"), float("inf"), 1e12):
        up = torch.full_like(pairs[module].up, value)
        broken = {**pairs, module: LoraPair(pairs[module].down * 1e12, up)}
        path = tmp_path / "bad.safetensors"
        with pytest.raises(NonFiniteError, match=r"0|blocks"):
            write_lora(path, NewLora(family, config, broken, lora_networks.RECIPES[name]))
        assert list(tmp_path.iterdir()) == []


def test_hashes_in_the_file_are_those_of_the_file(trained, tmp_path):
    path = saved(tmp_path / "a.safetensors", trained)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    digest = hashlib.sha256(data[8 + length :]).hexdigest()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["sshs_model_hash"] == digest
    assert metadata["sshs_model_hash"][:12] == hashes.file_hashes(path).autov3
    assert metadata["modelspec.hash_sha256"] == "0x" + digest
    assert "sshs_legacy_hash" not in metadata  # the hash of nothing, for files this small


def test_the_legacy_hash_covers_the_bytes_behind_the_first_mebibyte():
    tensors = {f"t{i}": torch.randn(300_000) for i in range(3)}
    metadata = {"ss_é": 'a "quoted"\nline', "other": "x" * 99}
    content = b"".join(lora_file.serialize(tensors, metadata))
    found = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"]
    alone = save(tensors, {"ss_é": metadata["ss_é"]})
    assert found["sshs_legacy_hash"] == hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]
    assert found["other"] == metadata["other"]


def test_metadata_say_what_hosts_and_people_look_for(trained, tmp_path):
    name = trained[0]
    facts = TrainingFacts(title="My LoRA", num_updates=300, seed=7, settings={"steps": 300})
    path = saved(tmp_path / "my_lora.safetensors", trained, metadata=training_metadata(facts))
    lora = read_lora(path)
    versions = {"sd1": "sd_v1", "sdxl": "sdxl_base_v1-0", "sd3": "sd3_m"}
    architectures = {
        "sd1": "stable-diffusion-v1/lora",
        "sdxl": "stable-diffusion-xl-v1-base/lora",
        "sd3": "stable-diffusion-3-5-medium/lora",
    }
    expected = {
        "ss_base_model_version": versions[name],
        "ss_output_name": "my_lora",
        "ss_steps": "300",
        "ss_seed": "7",
        "ss_network_dim": "3",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architectures[name],
        "modelspec.title": "My LoRA",
        "dpdmd.settings": '{"steps":300}',
    }
    assert {key: lora.metadata.get(key) for key in expected} == expected
    for key in ("modelspec.usage_hint", "ss_training_comment"):
        assert "Euler, Simple, 4 steps, CFG 1" in lora.metadata[key]
    assert lora.recipe == lora_networks.RECIPES[name]
    assert lora.family == name


def test_sd3_has_no_alpha_and_the_others_have_one_each(trained, tmp_path):
    keys = list(load_file(saved(tmp_path / "a.safetensors", trained)))
    alphas = [key for key in keys if key.endswith(".alpha")]
    assert len(alphas) == (0 if trained[0] == "sd3" else len(keys) // 3)


def test_nothing_is_overwritten_unasked(trained, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        saved(path, trained)
    assert path.read_bytes() == b"precious"
    saved(path, trained, overwrite=True)
    assert read_lora(path).family == trained[0]
    with pytest.raises(OutputError, match="is a folder"):
        saved(tmp_path, trained)
    with pytest.raises(OutputError, match="does not exist"):
        saved(tmp_path / "none" / "a.safetensors", trained)


def test_a_full_disk_leaves_the_old_file_and_no_litter(trained, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        saved(path, trained, overwrite=True)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"precious"]

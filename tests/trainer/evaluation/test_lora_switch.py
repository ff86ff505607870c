"""Several LoRAs on one network: exact while on, bit-exact when off again."""

from __future__ import annotations

import lora_networks
import pytest
import torch
from dpdmd_studio.core.errors import LoraError
from dpdmd_studio.core.lora.file import NewLora, read_lora, write_lora
from dpdmd_studio.trainer.evaluation.lora_switch import LoraSwitch
from dpdmd_studio.trainer.loading.checkpoint import apply_lora, open_checkpoint
from safetensors.torch import save_file


def weights(checkpoint) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in checkpoint.network.named_parameters()}


@pytest.fixture
def plain(files):
    return open_checkpoint(files["sd1"], dtype=torch.float32, device="cpu").load()


@pytest.fixture
def loras(plain, tmp_path):
    found = []
    for seed in (1, 2):
        pairs = lora_networks.random_pairs(plain.network, plain.family, plain.config, seed=seed)
        path = tmp_path / f"{seed}.safetensors"
        write_lora(path, NewLora(plain.family, plain.config, pairs, lora_networks.RECIPES["sd1"]))
        found.append(read_lora(path))
    return found


def test_each_lora_alone_equals_a_merge_and_off_is_bit_exact(files, plain, loras):
    before = weights(plain)
    switch = LoraSwitch(plain, {"a": [(loras[0], 1.0)], "b": [(loras[1], 0.5)]})
    for name, lora, strength in (("a", loras[0], 1.0), ("b", loras[1], 0.5)):
        merged = open_checkpoint(files["sd1"], dtype=torch.float32, device="cpu").load()
        apply_lora(merged, lora, strength)
        switch.use(name)
        for key, value in weights(merged).items():
            torch.testing.assert_close(weights(plain)[key], value)
        changed = [k for k, v in weights(plain).items() if not torch.equal(v, before[k])]
        assert changed
    switch.use("teacher")
    assert all(torch.equal(v, before[k]) for k, v in weights(plain).items())


def test_two_loras_in_force_together_add_up(plain, loras):
    before = weights(plain)
    switch = LoraSwitch(
        plain,
        {"a": [(loras[0], 1.0)], "b": [(loras[1], 1.0)], "both": [(lo, 1.0) for lo in loras]},
    )
    change = {}
    for name in ("a", "b", "both"):
        switch.use(name)
        change[name] = {k: v - before[k] for k, v in weights(plain).items()}
    for key, value in change["both"].items():
        torch.testing.assert_close(value, change["a"][key] + change["b"][key], atol=1e-6, rtol=1e-4)


def test_changed_norms_and_biases_are_added_and_taken_off_to_the_bit(plain, tmp_path):
    before, norm = weights(plain), "down_blocks.0.attentions.0.norm"
    path = tmp_path / "norms.safetensors"
    change = torch.arange(32.0)
    stem = f"lora_unet_{norm.replace('.', '_')}"
    save_file({f"{stem}.w_norm": change, f"{stem}.b_norm": -change}, path)
    switch = LoraSwitch(plain, {"norms": [(read_lora(path), 0.5)]})
    switch.use("norms")
    expected = dict(before)
    expected[f"{norm}.weight"] = before[f"{norm}.weight"] + 0.5 * change
    expected[f"{norm}.bias"] = before[f"{norm}.bias"] - 0.5 * change
    assert all(torch.equal(v, expected[k]) for k, v in weights(plain).items())
    switch.use("teacher")
    assert all(torch.equal(v, before[k]) for k, v in weights(plain).items())


def test_a_lora_of_another_family_is_refused(plain, tmp_path):
    network, family, config = lora_networks.build("sd3")
    pairs = lora_networks.random_pairs(network, family, config)
    path = tmp_path / "other.safetensors"
    write_lora(path, NewLora(family, config, pairs, lora_networks.RECIPES["sd3"]))
    with pytest.raises(LoraError, match="LoRA for sd3, but the model is"):
        LoraSwitch(plain, {"other": [(read_lora(path), 1.0)]})

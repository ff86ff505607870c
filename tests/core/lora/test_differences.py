"""Whole changes of weights and biases, as LyCORIS and ComfyUI write them: added as they are."""

from __future__ import annotations

import lora_networks
import pytest
import torch
from dpdmd_studio.app.library.inspect import inspect
from dpdmd_studio.comfy_nodes.sampling.load_lora import inspect_lora
from dpdmd_studio.core.errors import LoraError, NonFiniteError
from dpdmd_studio.core.lora.file import lora_deltas, merge_lora, parameter_shapes, read_lora
from safetensors.torch import save_file

NAMES = ("sd1", "sdxl", "sd3")
LEAVES = {"weight": ("diff", "w_norm"), "bias": ("diff_b", "b_norm")}
NORM = "down_blocks.0.attentions.0.transformer_blocks.0.norm1"
Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def written(path, tensors, metadata=None):
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata)
    return path


def drawn(shapes, seed=3):
    """A change of each parameter, in numbers that half precision holds."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in shapes if name.endswith((".weight", ".bias"))]
    return {n: torch.randn(shapes[n], generator=generator).half().float() for n in names}


def by_modules(changes, ends):
    """Under diffusers' names, as LyCORIS writes them."""
    found = {}
    for name, change in changes.items():
        module, _, leaf = name.rpartition(".")
        found[f"lora_unet_{module.replace('.', '_')}.{LEAVES[leaf][ends]}"] = change
    return found


def as_stored(changes, family, config):
    """Under the checkpoint's names and as its tensors lie there, as ComfyUI extracts them."""
    fused, found = {}, {}
    for name, change in changes.items():
        source = family.layout.tensor_source(name, config)
        module, _, leaf = source.key.rpartition(".")
        key = f"diffusion_model.{module}.{LEAVES[leaf][0]}"
        if source.part is not None:
            fused.setdefault(key, {})[source.part] = change
            continue
        found[key] = torch.cat(change.chunk(2)[::-1]) if source.change == "swap_halves" else change
    parts = {key: torch.cat([rows[n] for n in sorted(rows)]) for key, rows in fused.items()}
    return found | parts


@pytest.mark.parametrize("written_as", ["LyCORIS", "LyCORIS, norms", "ComfyUI"])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_its_change_at_the_strength_to_the_bit(name, written_as, tmp_path):
    network, family, config = lora_networks.build(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    changes = drawn(parameter_shapes(network))
    if written_as == "ComfyUI":
        tensors = as_stored(changes, family, config)
    else:
        tensors = by_modules(changes, ends=int("norms" in written_as))
    half = {key: value.half() for key, value in tensors.items()}
    lora = read_lora(written(tmp_path / "x.safetensors", half))
    assert lora.family == family.name
    merge_lora(network, lora_deltas(lora, family, config, parameter_shapes(network), 0.7))
    for key, value in network.state_dict().items():
        expected = before[key] + 0.7 * changes[key] if key in changes else before[key]
        assert torch.equal(value, expected), key


def test_a_lora_of_comfyuis_training_node_is_read_whole(tmp_path):
    """Products for matrices, and whole changes for norms and biases beside them."""
    network, family, config = lora_networks.build("sd1")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    place = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
    inner = "down_blocks.0.attentions.0.transformer_blocks.0"
    tensors = {
        f"{place}.attn1.to_out.0.lora_up.weight": torch.full((32, 2), 0.5),
        f"{place}.attn1.to_out.0.lora_down.weight": torch.full((2, 32), 0.25),
        f"{place}.attn1.to_out.0.alpha": torch.tensor(4.0),
        f"{place}.attn1.to_out.0.diff_b": torch.full((32,), 0.125),
        f"{place}.norm1.diff": torch.full((32,), 2.0),
        f"{place}.norm1.diff_b": torch.full((32,), -1.0),
    }
    lora = read_lora(written(tmp_path / "x.safetensors", tensors))
    merge_lora(network, lora_deltas(lora, family, config, parameter_shapes(network), 0.5))
    changes = {
        f"{inner}.attn1.to_out.0.weight": 0.5 * (4 / 2) * 2 * 0.5 * 0.25,
        f"{inner}.attn1.to_out.0.bias": 0.5 * 0.125,
        f"{inner}.norm1.weight": 0.5 * 2.0,
        f"{inner}.norm1.bias": 0.5 * -1.0,
    }
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] + changes.get(key, 0.0)), key
    facts = inspect(tmp_path / "x.safetensors", hashed=False)
    assert (facts["differences"], facts["modules"], facts["scales"]) == (3, 2, [1.0, 2.0])
    assert inspect_lora(tmp_path / "x.safetensors")[1] == 4  # as many patches as ComfyUI makes


def test_a_1x1_convolutions_change_may_lack_its_two_axes(tmp_path):
    network, family, config = lora_networks.build("sd1")
    module = "down_blocks.0.attentions.0.proj_in"
    before = network.get_submodule(module).weight.clone()
    change = torch.randn(32, 32)
    key = f"lora_unet_{module.replace('.', '_')}.diff"
    lora = read_lora(written(tmp_path / "x.safetensors", {key: change}))
    merge_lora(network, lora_deltas(lora, family, config, parameter_shapes(network), 1.0))
    assert torch.equal(network.get_submodule(module).weight, before + change[..., None, None])


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_layers_that_diffusers_has_joined_are_parted(name, tmp_path):
    network, family, config = lora_networks.build(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    prefix, block, joined = {
        "sd1": ("unet.", "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
                {"to_kv": ("to_k", "to_v")}),
        "sdxl": ("unet.", "mid_block.attentions.0.transformer_blocks.1.attn1",
                 {"to_qkv": ("to_q", "to_k", "to_v")}),
        "sd3": ("transformer.", "transformer_blocks.0.attn",
                {"to_qkv": ("to_q", "to_k", "to_v"),
                 "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}),
    }[name]  # fmt: skip
    tensors, changes = {}, {}
    for layer, parts in joined.items():
        sizes = [before[f"{block}.{part}.weight"].shape for part in parts]
        rows = [size[0] for size in sizes]
        up, down = torch.randn(sum(rows), 2), torch.randn(2, sizes[0][1])
        tensors[f"{prefix}{block}.{layer}.lora_A.weight"] = down
        tensors[f"{prefix}{block}.{layer}.lora_B.weight"] = up
        for part, own in zip(parts, up.split(rows), strict=True):
            changes[f"{block}.{part}.weight"] = own @ down
    lora = read_lora(written(tmp_path / "x.safetensors", tensors))
    merge_lora(network, lora_deltas(lora, family, config, parameter_shapes(network), 1.0))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key] + changes.get(key, 0.0))


WRONG = {
    "another size": ({f"{Q}.diff": torch.ones(32, 31)},
                     r"attn1_to_q has a difference of sizes \(32, 31\), which do not fit the "
                     r"model's \(32, 32\)"),
    "as many numbers in another shape": ({f"{Q}.diff": torch.ones(16, 64)},
                                         r"a difference of sizes \(16, 64\)"),
    "a bias of another size": (
        {f"{Q[:-4]}to_out_0.diff_b": torch.ones(31)}, r"sizes \(31,\).*do not fit.*\(32,\)"),
    "a bias where there is none": (
        {f"{Q}.diff_b": torch.ones(32)}, "changes a bias, and the model's .*to_q has none"),
    "a norm that is not there": (
        {f"{Q}.diff": torch.ones(32, 32), "lora_unet_x_norm.w_norm": torch.ones(32)},
        "1 modules that this model does not have: x_norm"),
    "both kinds for one weight": (
        {f"{Q}.diff": torch.ones(32, 32), f"{Q}.lora_down.weight": torch.ones(2, 32),
         f"{Q}.lora_up.weight": torch.ones(32, 2)}, "given in two forms at once"),
    "a difference of nothing": ({f"{Q}.diff": torch.ones(0, 32)}, "diff holds no number"),
    "one change under two names": (
        {f"{Q}.diff": torch.ones(32, 32),
         "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.diff": torch.ones(32, 32)},
        "twice, under two names"),
    "w_norm beside diff": (
        {f"{Q}.diff": torch.ones(32, 32), f"{Q}.w_norm": torch.ones(32)},
        "two tensors for one place"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_what_does_not_fit_is_named(mistake, tmp_path):
    network, family, config = lora_networks.build("sd1")
    tensors, message = WRONG[mistake]
    path = written(tmp_path / "x.safetensors", tensors)
    with pytest.raises(LoraError, match=message):
        lora_deltas(read_lora(path), family, config, parameter_shapes(network))


def test_what_is_no_number_is_named(tmp_path):
    network, family, config = lora_networks.build("sd1")
    path = written(tmp_path / "x.safetensors", {f"{Q}.diff": torch.full((32, 32), torch.nan)})
    with pytest.raises(NonFiniteError, match=r"x.safetensors: .*attn1_to_q.*NaN"):
        lora_deltas(read_lora(path), family, config, parameter_shapes(network))

"""One answer for a LoRA file, whoever asks: inspect, packaging, ComfyUI's node and loading."""

from __future__ import annotations

import json
import struct

import lora_networks
import pytest
import torch
from dpdmd_studio.app.library.inspect import inspect
from dpdmd_studio.app.library.model_folders import list_models
from dpdmd_studio.app.share.source import read_student
from dpdmd_studio.comfy_nodes.sampling.load_lora import inspect_lora
from dpdmd_studio.core.errors import LoraError, RecipeError, UnsupportedLoraError
from dpdmd_studio.core.files.tensor_file import read_header, read_scalar
from dpdmd_studio.core.lora.file import lora_deltas, open_lora, parameter_shapes, read_lora
from lora_networks import by_module
from safetensors.torch import save_file

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP = torch.ones(2, 32), torch.ones(32, 2)
PAIR = {f"{Q}.lora_down.weight": DOWN, f"{Q}.lora_up.weight": UP}


def written(path, tensors, metadata=None):
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata)
    return path


def answers(path):
    """What each reader says is wrong with the file; None for a reader that takes it."""
    found = {"inspect": inspect(path, hashed=False).get("problem")}
    readers = {"load": open_lora, "package": read_student, "node": inspect_lora}
    for name, read in readers.items():
        found[name] = None
        try:
            read(path)
        except RecipeError:
            pass
        except LoraError as error:
            found[name] = str(error)
    return found


DAMAGED = {
    "alpha of two": (PAIR | {f"{Q}.alpha": torch.ones(2)}, r"not a finite.*F32 of shape \(2,\)"),
    "alpha of none": (PAIR | {f"{Q}.alpha": torch.ones(0)}, r"not a finite.*shape \(0,\)"),
    "alpha infinite": (PAIR | {f"{Q}.alpha": torch.tensor(torch.inf)}, "not a finite.*inf"),
    "alpha alone": ({**PAIR, "lora_unet_x.alpha": torch.tensor(1.0)}, "x has no down half"),
    "halves without axes": (dict.fromkeys(PAIR, torch.tensor(1.0)), r"down \(\) and up \(\)"),
    "one half": ({f"{Q}.lora_down.weight": DOWN}, "has no up half"),
    "three axes": (PAIR | {f"{Q}.lora_down.weight": torch.ones(2, 4, 8)}, "not a LoRA pair"),
    "rank zero": ({k: v[:0] if v is DOWN else v[:, :0] for k, v in PAIR.items()}, "rank 0"),
    "ranks apart": (PAIR | {f"{Q}.lora_up.weight": torch.ones(32, 3)}, "not a LoRA pair"),
    "whole numbers": ({k: v.to(torch.int8) for k, v in PAIR.items()}, "stored as I8"),
    "half of an encoder's pair": (
        PAIR | {"lora_te_x.lora_up.weight": UP}, "lora_te_x has no down half"
    ),
    "two forms": (PAIR | {f"{Q}.lokr_w1": torch.ones(2, 2)}, "two forms at once"),
    "loha of odd axes": (
        {f"{Q}.hada_w{n}_{half}": torch.ones(2) for n in "12" for half in "ab"},
        "sizes contradict",
    ),
    "lokr of nothing": (
        {f"{Q}.lokr_w1": torch.ones(0, 2), f"{Q}.lokr_w2": torch.ones(2, 2)}, "sizes contradict"
    ),
    "two adapters": (
        {f"unet.x.lora_{half}.{name}.weight": torch.ones(2, 2) for half in "AB" for name in "ab"},
        "2 adapters of different names",
    ),
    "embeddings alone": (
        {"bundle_emb.x.clip_l": torch.ones(1, 8), f"{'bundle_emb.x'}.clip_g": torch.ones(1, 8)},
        "embeddings only",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_told_by_all_with_the_same_words(case, tmp_path):
    tensors, message = DAMAGED[case]
    path = written(tmp_path / "x.safetensors", tensors)
    with pytest.raises(LoraError, match=message):
        open_lora(path)
    found = answers(path)
    if case == "embeddings alone":  # to inspect it is no LoRA at all
        found.pop("inspect")
    assert len(set(found.values())) == 1, found


OTHER_KINDS = {
    "DoRA": {**PAIR, f"{Q}.dora_scale": torch.ones(32, 1)},
    "DoRA ": {"unet.x.lora_magnitude_vector.style.weight": torch.ones(4)},
    "OFT": {f"{Q}.oft_blocks": torch.ones(4, 2, 2)},
    "OFT ": {"unet.x.oft_R.default.weight": torch.ones(4, 2)},
    "BOFT": {"unet.x.boft_R.default": torch.ones(4, 2, 2)},
    "GLoRA": {f"{Q}.{part}.weight": torch.ones(2, 2) for part in ("a1", "a2", "b1", "b2")},
    "IA3": {f"{Q}.weight": torch.ones(32), f"{Q}.on_input": torch.tensor(False)},
    "IA3 ": {"unet.x.ia3_l.default": torch.ones(4, 1)},
    "VeRA": {"unet.x.vera_lambda_b.default": torch.ones(4)},
    "replaced weights": {**PAIR, "diffusion_model.img_in.set_weight": torch.ones(32, 32)},
    "replaced weights ": {**PAIR, f"{Q}.reshape_weight": torch.ones(2)},
    "LoRA with biases": {**PAIR, f"{Q}.lora_up.bias": torch.ones(32)},
    "LoRA of embeddings": {"text_encoder.x.lora_embedding_A.default": torch.ones(2, 4)},
    "control LoRA": {"lora_controlnet": torch.ones(0), "input_blocks.0.0.up": UP},
    "LoRA with numbered layers": {"unet:0:up": UP, "unet:0:down": DOWN},
    "LoRA with numbered layers ": {"weights.0.lora_up": UP, "weights.0.lora_down": DOWN},
    "LoRA with numbered halves": {"unet.x.lora_A_1.default_0.weight": DOWN},
    "LoRA with numbered halves ": {
        f"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_{half}.{n}.weight": tensor
        for half, tensor in (("down", DOWN), ("up", UP))
        for n in range(3)
    },
    "LoRA as diffusers 0.15 changed text encoders": {
        "text_encoder.layers.0.self_attn.k_proj.to_out_lora.up.weight": UP
    },
    "quantised weights with separate scales": {**PAIR, f"{Q}.lora_up.scale_weight": torch.ones(1)},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_kinds_that_are_not_handled_are_named_by_all_and_left_to_comfyui(kind, tmp_path):
    path = written(tmp_path / "x.safetensors", OTHER_KINDS[kind])
    with pytest.raises(UnsupportedLoraError, match=kind.strip()):
        open_lora(path)
    assert inspect(path, hashed=False)["kind"] == "LoRA"
    assert [model.path for model in list_models([tmp_path], "lora")] == [path]
    found = answers(path)
    assert found.pop("node") is None
    assert len(set(found.values())) == 1, found


def test_an_embedding_is_called_one(tmp_path):
    for names in (("emb_params",), ("clip_l", "clip_g")):
        path = written(tmp_path / "x.safetensors", {name: torch.ones(1, 8) for name in names})
        with pytest.raises(LoraError, match="textual inversion"):
            open_lora(path)


NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
           torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.uint8)  # fmt: skip


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_alphas_of_every_number_format_are_read(dtype, tmp_path):
    for alpha in (torch.tensor(3), torch.tensor([3])):
        path = written(tmp_path / "x.safetensors", PAIR | {f"{Q}.alpha": alpha.to(dtype)})
        assert inspect(path, hashed=False)["scales"] == [1.5]
        lora = read_lora(path)
        assert lora.pair(next(iter(lora.modules.values()))).scale == 1.5


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16], ids=str)
def test_every_byte_is_the_number_that_torch_reads(dtype, tmp_path):
    content = torch.arange(256, dtype=torch.uint8)
    if dtype == torch.bfloat16:
        content = torch.stack([content.flip(0), content], 1).flatten()
    values = content.view(dtype)
    path = written(tmp_path / "x.safetensors", {str(n): value for n, value in enumerate(values)})
    header = read_header(path)
    with path.open("rb") as file:
        found = [read_scalar(file, header, str(n)) for n in range(len(values))]
    bits = [struct.pack("<f", value) for value in found if value == value]
    wanted = [struct.pack("<f", value) for value in values.float().tolist() if value == value]
    assert bits == wanted


def test_inspect_and_loading_know_the_scale_in_diffusers_metadata(tmp_path):
    tensors = {"unet.x.to_q.lora_A.weight": DOWN, "unet.x.to_q.lora_B.weight": UP}
    facts = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 2})}
    path = written(tmp_path / "x.safetensors", tensors, facts)
    assert inspect(path, hashed=False)["scales"] == [4.0]
    written(path, tensors, {"lora_adapter_metadata": '{"unet.use_rslora": true}'})
    assert len(set(answers(path).values())) == 1 and "rank-stab" in answers(path)["node"]


def test_all_know_the_family_that_only_the_metadata_tell(tmp_path):
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": DOWN, f"{name}.lora_up.weight": UP}
    path = written(tmp_path / "x.safetensors", tensors, {"ss_base_model_version": "sdxl_v1"})
    assert inspect(path)["family"] == open_lora(path).family == inspect_lora(path)[2] == "sdxl"


# What other programs write, read as the same update


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("kind", ["lora", "tucker", "loha", "lokr"])
def test_8_bit_floats_are_their_numbers(kind, dtype, tmp_path):
    shapes = {
        "lora": {"lora_down.weight": (2, 32), "lora_up.weight": (32, 2)},
        "tucker": {"lora_down.weight": (2, 8, 1, 1), "lora_up.weight": (8, 2, 1, 1),
                   "lora_mid.weight": (2, 2, 3, 3)},
        "loha": {f"hada_w{n}_{half}": size for n in "12" for half, size in
                 (("a", (32, 2)), ("b", (2, 32)))},
        "lokr": {"lokr_w1": (4, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 4)},
    }[kind]  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    small = {f"{Q}.{n}": torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
    pairs = []
    for tensors in (small, {key: value.float() for key, value in small.items()}):
        lora = read_lora(written(tmp_path / "x.safetensors", tensors))
        pairs.append(lora.pair(next(iter(lora.modules.values()))))
    assert torch.equal(pairs[0].down, pairs[1].down) and torch.equal(pairs[0].up, pairs[1].up)


@pytest.mark.parametrize(
    "names",
    [
        ("unet.{}", ".lora_A.my-style_2.weight", ".lora_B.my-style_2.weight"),
        ("base_model.model.{}", ".lora_A.default_0.weight", ".lora_B.default_0.weight"),
        ("lora_unet_{}", ".lora_down.adapter.weight", ".lora_up.adapter.weight"),
        ("diffusion_model.{}", ".lora_A", ".lora_B"),
        ("unet._orig_mod.{}", ".lora_A.weight", ".lora_B.weight"),
        ("module.{}", ".lora_A.weight", ".lora_B.weight"),
        ("{}", "_lora.down.weight", "_lora.up.weight"),
    ],
)
def test_names_of_other_programs_reach_the_same_module(names, tmp_path):
    network, family, config = lora_networks.build("sd1")
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    prefix, down, up = names
    written_as = module.replace(".to_q", ".processor.to_q") if prefix == "{}" else module
    stem = prefix.format(written_as.replace(".", "_") if "lora_unet" in prefix else written_as)
    path = written(tmp_path / "x.safetensors", {stem + down: DOWN, stem + up: UP})
    found = by_module(lora_deltas(read_lora(path), family, config, parameter_shapes(network)))
    assert list(found) == [module] and torch.equal(found[module].down, DOWN)
    assert inspect(path, hashed=False)["family"] == "sd1"


def test_omis_names_reach_every_module_of_sd3(tmp_path):
    network, family, config = lora_networks.build("sd3")
    pairs, tensors = lora_networks.random_pairs(network, family, config), {}
    for module, pair in pairs.items():
        source = family.layout.tensor_source(f"{module}.weight", config)
        part = "" if source.part is None else f".{source.part}"
        stem = f"transformer.{source.key.removesuffix('.weight')}{part}"
        up = pair.up * pair.scale
        up = torch.cat(up.chunk(2)[::-1]) if source.change == "swap_halves" else up
        tensors |= {f"{stem}.lora_down.weight": pair.down, f"{stem}.lora_up.weight": up}
    path = written(tmp_path / "x.safetensors", tensors)
    found = by_module(lora_deltas(read_lora(path), family, config, parameter_shapes(network)))
    assert found.keys() == pairs.keys()
    for module, pair in pairs.items():
        assert torch.equal(found[module].down, pair.down)
        assert torch.equal(found[module].up, pair.up * pair.scale)


def test_bundled_embeddings_are_named_and_left_out(tmp_path):
    bundled = {f"bundle_emb.<a.b>.{kind}": torch.ones(1, 8) for kind in ("clip_l", "clip_g_out")}
    bundled |= {"bundle_emb.thing.string_to_param.*": torch.ones(2, 8)}
    path = written(tmp_path / "x.safetensors", PAIR | bundled)
    lora = read_lora(path)
    assert list(lora.modules) == [Q.removeprefix("lora_unet_")]
    assert inspect(path, hashed=False)["embeddings"] == ["<a.b>", "thing"]
    assert "embeddings along ('<a.b>', 'thing')" in lora.not_applied()[0]
    assert inspect_lora(path)[1] == 1

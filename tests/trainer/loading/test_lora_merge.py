"""LoRAs merged into a checkpoint as it loads: the exact sum, rounded once, text encoders too."""

from __future__ import annotations

import dataclasses

import checkpoints
import pytest
import torch
from dpdmd_studio.core.errors import LoraError, NonFiniteError
from dpdmd_studio.core.lora.file import lora_deltas, parameter_shapes, read_lora
from dpdmd_studio.core.lora.math import delta
from dpdmd_studio.trainer.loading.checkpoint import Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.lora_merge import open_merging
from dpdmd_studio.trainer.text.cache import encode_prompts, encoder_identity
from lora_networks import by_module
from safetensors.torch import load_file, save_file
from style_loras import KOHYA, TE_LAYERS, change, plain, style
from tiny_runs import BUILDERS, heard

pytestmark = pytest.mark.usefixtures("home")
TEXTS = ["a cat", "two red houses at dusk"]


@pytest.fixture(scope="module")
def files(files, tmp_path_factory):
    """The tiny checkpoints, and an SD3 with all three encoders."""
    path = tmp_path_factory.mktemp("t5") / "sd3-t5.safetensors"
    return files | {"sd3-t5": checkpoints.save(path, checkpoints.file_state(checkpoints.sd3()))}


def merged(path, loras, dtype=torch.float32, notes=None):
    opened = [open_merging(item.path, strength) for item, strength in loras]
    with heard() as said:
        checkpoint = open_checkpoint(
            path, dtype=dtype, device="cpu", overrides=Overrides(loras=opened)
        ).load()
    if notes is not None:
        notes += said
    return checkpoint


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("name", BUILDERS)
def test_the_denoiser_gets_the_sum_of_all_updates(name, form, files, tmp_path):
    first = style(tmp_path / "a.safetensors", files[name], form=form)
    second = style(tmp_path / "b.safetensors", files[name], rank=2, seed=9, form=form)
    network = merged(files[name], [(first, 0.7), (second, -0.4)]).network
    for module, weight in plain(files[name]).network.named_modules():
        if not isinstance(getattr(weight, "weight", None), torch.Tensor):
            continue
        expected = weight.weight.double()
        for item, strength in ((first, 0.7), (second, -0.4)):
            if module in item.denoiser:
                expected = expected + strength * change(item.denoiser[module], expected.shape)
        found = network.get_submodule(module).weight
        assert (module in first.denoiser) == (not torch.equal(found, weight.weight))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_rounded_once_to_the_models_dtype(dtype, files, tmp_path):
    item = style(tmp_path / "a.safetensors", files["sd1"])
    base = plain(files["sd1"])
    pairs = lora_deltas(
        read_lora(item.path), base.family, base.config, parameter_shapes(base.network), 0.7
    )
    found = merged(files["sd1"], [(item, 0.7)], dtype).network
    twice_rounded_differs = False
    for module, pair in by_module(pairs).items():
        stored = base.network.get_submodule(module).weight  # fp16 in the file, exact in fp32
        added = delta(pair, stored.shape)
        weight = found.get_submodule(module).weight
        assert torch.equal(weight, (stored + added).to(dtype))
        twice = (stored.to(dtype).float() + added).to(dtype)
        twice_rounded_differs |= not torch.equal(weight, twice)
    assert twice_rounded_differs == (dtype == torch.bfloat16)


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("name", [*BUILDERS, "sd3-t5"])
def test_prompts_go_through_text_encoders_with_the_lora_in_them(name, form, files, tmp_path):
    """The same as a checkpoint whose encoders were merged by hand."""
    item = style(tmp_path / "a.safetensors", files[name], denoiser=False, form=form)
    family = plain(files[name]).family.name
    places = {"sd1": checkpoints.SD1_PLACES, "sdxl": checkpoints.SDXL_PLACES}
    places = places.get(family, checkpoints.SD3_PLACES)
    state = {key: value.float() for key, value in load_file(files[name]).items()}
    for kind, pairs in item.encoders.items():
        for module, pair in pairs.items():
            openclip = places[kind].endswith(".model.")
            key, rows = in_openclip(module) if openclip else (f"{module}.weight", slice(None))
            weight = state[places[kind] + key]
            weight[rows] += 0.7 * change(pair, weight[rows].shape).float()
    by_hand = tmp_path / "by-hand.safetensors"
    save_file(state, by_hand)
    ours = encoded(merged(files[name], [(item, 0.7)]), tmp_path / "ours")
    theirs = encoded(plain(by_hand), tmp_path / "theirs")
    before = encoded(plain(files[name]), tmp_path / "before")
    for text in TEXTS:
        torch.testing.assert_close(ours[text].context, theirs[text].context, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(ours[text].context, before[text].context, atol=1e-2)
        if ours[text].pooled is not None:
            torch.testing.assert_close(ours[text].pooled, theirs[text].pooled, rtol=1e-3, atol=1e-4)


def in_openclip(module: str) -> tuple[str, slice]:
    """Where a CLIP-G layer lies in an SDXL file: the tensor, and its rows of the fused q, k, v."""
    index, inner = module.removeprefix("text_model.encoder.layers.").split(".", 1)
    block = f"transformer.resblocks.{index}."
    if inner == "self_attn.v_proj":
        return f"{block}attn.in_proj_weight", slice(128, 192)
    return {"mlp.fc2": (f"{block}mlp.c_proj.weight", slice(None))}[inner]


def encoded(checkpoint, folder):
    return encode_prompts(checkpoint, TEXTS, cache_folder=folder)


def test_the_cache_tells_merged_encoders_apart_and_no_others(files, tmp_path):
    texts = style(tmp_path / "te.safetensors", files["sdxl"])
    bare = style(tmp_path / "bare.safetensors", files["sdxl"], encoders=False)
    cache, sizes = tmp_path / "cache", []
    for loras in ([], [(bare, 1.0)], [(texts, 1.0)], [(texts, 0.5)], [(texts, 1.0), (bare, 1.0)]):
        encoded(merged(files["sdxl"], loras), cache)
        sizes.append(len(list(cache.iterdir())))
    assert sizes == [2, 2, 4, 6, 6]


def test_an_encoder_that_no_lora_changes_keeps_its_identity(files, tmp_path):
    item = style(tmp_path / "a.safetensors", files["sdxl"])
    tensors = load_file(item.path)
    save_file({k: v for k, v in tensors.items() if "lora_te1_" not in k}, item.path)
    found = {
        k: encoder_identity(v) for k, v in merged(files["sdxl"], [(item, 1.0)]).encoders.items()
    }
    before = {k: encoder_identity(v) for k, v in plain(files["sdxl"]).encoders.items()}
    assert found["clip_l"] == before["clip_l"] and found["clip_g"] != before["clip_g"]


@pytest.mark.parametrize("name", ["sdxl", "sd3-t5"])
def test_omis_names_reach_the_encoders_and_an_unread_projection_is_left_out(name, files, tmp_path):
    item = style(tmp_path / "a.safetensors", files[name])
    base = plain(files[name])
    kohya = {prefix: kind for kind, prefix in KOHYA[base.family.name].items()}
    stems = {
        prefix + module.replace(".", "_"): f"{kind.removesuffix('xxl')}.{module}"
        for prefix, kind in kohya.items()
        for module in item.encoders[kind]
    }
    projection = {
        f"clip_l.text_projection.lora_{half}.weight": torch.full(size, 0.1)
        for half, size in (("down", (1, 32)), ("up", (32, 1)))
    }
    renamed = dict(projection)
    for key, tensor in load_file(item.path).items():
        stem, ending = key.split(".", 1)
        renamed[f"{stems.get(stem, stem)}.{ending}"] = tensor
    omi, notes = tmp_path / "omi.safetensors", []
    save_file(renamed, omi)
    ours = merged(files[name], [(dataclasses.replace(item, path=omi), 0.7)], notes=notes)
    theirs = merged(files[name], [(item, 0.7)])
    for kind in base.encoders:
        values = [found.encoders[kind].load(torch.float32, "cpu").state_dict()
                  for found in (ours, theirs)]  # fmt: skip
        assert all(torch.equal(value, values[1][key]) for key, value in values[0].items())
    assert "text_projection is not used: the CLIP-L text encoder is read" in notes[-1]
    save_file(projection, omi)
    with pytest.raises(LoraError, match="holds the projection of the CLIP-L text encoder alone"):
        merged(files[name], [(dataclasses.replace(item, path=omi), 0.7)])


def encoder_state(checkpoint, kind):
    state = checkpoint.encoders[kind].load(torch.float32, "cpu").state_dict()
    return {key.removeprefix("text_model."): value for key, value in state.items()}


OPENCLIP_NAMES = {
    # the tensor itself, the layer, and torch's own layer as PEFT calls it
    "lora_te2_transformer_resblocks_1_{_}": "attn.in_proj_weight",
    "lora_te2_model_transformer_resblocks_1_{_}": "attn.in_proj",
    "text_encoders.clip_g.transformer.resblocks.1.{.}": "attn.in_proj",
    "clip_g.transformer.resblocks.1.{.}": "attn",
}


@pytest.mark.parametrize("form", OPENCLIP_NAMES)
def test_openclips_names_with_q_k_and_v_in_one_reach_clip_g(form, files, tmp_path):
    up, down = torch.randn(192, 2), torch.randn(2, 64) * 0.1
    bias, fc = torch.randn(192), torch.randn(64, 128)
    attention = {"lora_up.weight": up, "lora_down.weight": down, "diff_b": bias}
    named = {}
    for module, tensors in ((OPENCLIP_NAMES[form], attention), ("mlp.c_proj", {"diff": fc})):
        stem = form.replace("{_}", module.replace(".", "_")).replace("{.}", module)
        named |= {f"{stem}.{ending}": value for ending, value in tensors.items()}
    path = tmp_path / "x.safetensors"
    save_file(named, path)
    item = type(style(tmp_path / "a.safetensors", files["sdxl"]))(path, {})
    found = encoder_state(merged(files["sdxl"], [(item, 0.5)]), "clip_g")
    before = encoder_state(plain(files["sdxl"]), "clip_g")
    layer = "encoder.layers.1"
    changes = {f"{layer}.mlp.fc2.weight": fc}
    for letter, rows, numbers in zip("qkv", (up @ down).chunk(3), bias.chunk(3), strict=True):
        changes[f"{layer}.self_attn.{letter}_proj.weight"] = rows
        changes[f"{layer}.self_attn.{letter}_proj.bias"] = numbers
    assert found.keys() == before.keys() >= changes.keys()
    for key, value in found.items():
        expected = before[key] + 0.5 * changes[key] if key in changes else before[key]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


WHOLE = {
    "clip_l": ("text_encoders.clip_l.transformer.text_model.", "embeddings.token_embedding"),
    "clip_g": ("lora_te2_text_model_", "final_layer_norm"),
    "t5xxl": ("text_encoders.t5xxl.transformer.", "shared"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_changes_reach_the_encoders_to_the_bit(kind, files, tmp_path):
    before = encoder_state(plain(files["sd3-t5"]), kind)
    prefix, module = WHOLE[kind]
    leaves = {"diff": "weight", "diff_b": "bias"}
    changes, tensors = {}, {}
    for ending, leaf in leaves.items():
        if f"{module}.{leaf}" in before:
            change = torch.randn(before[f"{module}.{leaf}"].shape).half()
            tensors[f"{prefix}{module}.{ending}"] = change
            changes[f"{module}.{leaf}"] = change.float()
    if kind == "t5xxl":  # one table of two names
        changes["encoder.embed_tokens.weight"] = changes["shared.weight"]
    path, notes = tmp_path / "x.safetensors", []
    save_file(tensors, path)
    item = type(style(tmp_path / "a.safetensors", files["sd3-t5"]))(path, {})
    checkpoint = merged(files["sd3-t5"], [(item, 0.5)], notes=notes)
    assert notes[-1].endswith("All its tensors are used.")
    found = encoder_state(checkpoint, kind)
    for key, value in found.items():
        expected = before[key] + 0.5 * changes[key] if key in changes else before[key]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_whole_changes_are_those_of_a_checkpoint_merged_by_hand(dtype, files, tmp_path):
    state = {key: value.float() for key, value in load_file(files["sdxl"]).items()}
    tensors = {}
    for key in list(state):
        module, _, leaf = key.rpartition(".")
        if key.startswith("model.diffusion_model.") and leaf in ("weight", "bias"):
            change = (torch.randn(state[key].shape) * 0.05).half()
            tensors[f"{module}.{'diff' if leaf == 'weight' else 'diff_b'}"] = change
            state[key] = state[key] + 0.7 * change.float()
    by_hand, path = tmp_path / "by-hand.safetensors", tmp_path / "full.safetensors"
    save_file(state, by_hand)
    save_file(tensors, path)
    item = type(style(tmp_path / "a.safetensors", files["sdxl"]))(path, {})
    ours = merged(files["sdxl"], [(item, 0.7)], dtype).network.state_dict()
    theirs = merged(by_hand, [], dtype).network.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_an_encoders_adapter_saved_by_itself_is_for_the_only_one(files, tmp_path):
    item = style(tmp_path / "a.safetensors", files["sd1"], denoiser=False, form="peft")
    named = {f"base_model.model.{key.removeprefix('text_encoder.')}": value
             for key, value in load_file(item.path).items()}  # fmt: skip
    theirs = {kind: encoder_identity(c) for kind, c in plain(files["sd1"]).encoders.items()}
    save_file(named, item.path)
    notes: list[str] = []
    ours = merged(files["sd1"], [(item, 0.7)], notes=notes).encoders
    assert encoder_identity(ours["clip_l"]) != theirs["clip_l"]
    assert any("2 layers of the CLIP-L text encoder. All its tensors" in note for note in notes)
    with pytest.raises(LoraError, match="does not say which of the text encoders of SDXL"):
        merged(files["sdxl"], [(item, 0.7)])


def test_what_was_merged_is_said_with_what_is_not_used(files, tmp_path):
    item = style(tmp_path / "my style.safetensors", files["sd3-t5"])
    notes: list[str] = []
    merged(files["sd3-t5"], [(item, 0.7)], notes=notes)
    layers = f"{len(item.denoiser)} layers of the transformer, 2 layers of the CLIP-L text encoder"
    said = next(note for note in notes if "Merged" in note)
    assert said.startswith(f"Merged my style.safetensors at strength 0.7: {layers}")
    assert said.endswith("2 layers of the T5 text encoder. All its tensors are used.")
    # the same LoRA on a checkpoint without T5
    state = {k: v for k, v in load_file(files["sd3-t5"]).items() if "t5xxl" not in k}
    save_file(state, tmp_path / "no-t5.safetensors")
    notes.clear()
    merged(tmp_path / "no-t5.safetensors", [(item, 0.7)], notes=notes)
    said = next(note for note in notes if "Merged" in note)
    assert "6 of its tensors are not used, as there is no T5 text encoder: lora_te3_encoder" in said


OTHER_NAMES = {
    "lora_te1_": "lora_te1_{_}",
    "dotted": "text_encoder.{.}",
    "numbered": "text_encoder_1.{.}",
    "short": "te1_{_}",
    "comfyui": "text_encoders.clip_l.transformer.{.}",
    "without text_model": "lora_te_{short}",
}


@pytest.mark.parametrize("form", OTHER_NAMES)
def test_other_ways_to_name_a_text_encoder(form, files, tmp_path):
    item = style(tmp_path / "a.safetensors", files["sd1"], denoiser=False)
    renamed = {}
    for module in TE_LAYERS["clip_l"]:
        stem = OTHER_NAMES[form].replace("{.}", module).replace("{_}", module.replace(".", "_"))
        stem = stem.replace("{short}", module.removeprefix("text_model.").replace(".", "_"))
        for key, value in load_file(item.path).items():
            own = KOHYA["sd1"]["clip_l"] + module.replace(".", "_")
            if key.startswith(own):
                renamed[stem + key.removeprefix(own)] = value
    save_file(renamed, tmp_path / "b.safetensors")
    one, two = (
        merged(files["sd1"], [(type(item)(tmp_path / name, {}), 0.7)]).encoders["clip_l"]
        for name in ("a.safetensors", "b.safetensors")
    )
    states = [part.load(torch.float32, "cpu").state_dict() for part in (one, two)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def changed_file(item, tmp_path, change_keys):
    path = tmp_path / "changed.safetensors"
    tensors = change_keys(load_file(item.path))
    save_file({key: value.clone() for key, value in tensors.items()}, path)
    return type(item)(path, {})


BROKEN = {
    "unknown encoder layer": (
        lambda t: t | {k.replace("layers_0", "layers_77"): v for k, v in t.items() if "_te_" in k},
        "modules that this model does not have: encoder_layers_77_self_attn_q_proj",
    ),
    "an encoder that the family lacks": (
        lambda t: t | {k.replace("_te_", "_te2_"): v for k, v in t.items() if "_te_" in k},
        "text encoder that SD 1.x does not have",
    ),
    "dora in the encoder": (
        lambda t: t | {"lora_te_x.dora_scale": torch.ones(1)},
        "DoRA",
    ),
    "a prior's encoder": (
        lambda t: t | {f"lora_prior_te_x.lora_{half}.weight": torch.ones(1, 1)
                       for half in ("down", "up")},
        "changes a text encoder that .* does not have .'lora_prior_te_x",
    ),
    "half a pair of an encoder": (
        lambda t: t | {"lora_te_x.lora_down.weight": torch.ones(1, 1)},
        "lora_te_x has no up half",
    ),
    "one layer under two names": (
        lambda t: t | {k.replace("_te_text_model_", "_te_"): v for k, v in t.items()},
        "two tensors for one place",
    ),
    "wrong width": (
        lambda t: {k: v[:, :-1].contiguous() if "_te_" in k and "down" in k else v
                   for k, v in t.items()},
        "do not fit the model's",
    ),
    "alpha that is no number": (
        lambda t: {k: torch.tensor(float("nan")) if k.endswith("alpha") else v
                   for k, v in t.items()},
        "alpha is not a finite number",
    ),
    "rank zero": (
        lambda t: {k: v[:0] if ".lora_down" in k else v[:, :0] if ".lora_up" in k else v
                   for k, v in t.items()},
        "rank 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BROKEN)
def test_what_does_not_fit_is_refused_and_never_skipped(mistake, files, tmp_path):
    change_keys, message = BROKEN[mistake]
    broken = changed_file(style(tmp_path / "a.safetensors", files["sd1"]), tmp_path, change_keys)
    with pytest.raises(LoraError, match=message):
        merged(files["sd1"], [(broken, 1.0)])


def test_a_lora_for_absent_encoders_alone_changes_nothing_and_says_so(files, tmp_path):
    item = style(tmp_path / "a.safetensors", files["sd3-t5"], denoiser=False)
    t5 = changed_file(item, tmp_path, lambda t: {k: v for k, v in t.items() if "te3" in k})
    with pytest.raises(LoraError, match=r"changes nothing here.*no T5 text encoder"):
        merged(files["sd3"], [(t5, 1.0)])


def test_weights_that_a_strength_makes_too_large_are_named(files, tmp_path):
    item = style(tmp_path / "a.safetensors", files["sd1"], size=200.0)
    with pytest.raises(NonFiniteError, match=r"with the LoRAs merged.*Lower their strength"):
        merged(files["sd1"], [(item, 10.0)], torch.float16)


def test_each_encoder_has_its_own_alpha_in_a_file_of_diffusers(files, tmp_path):
    import json

    item = style(tmp_path / "a.safetensors", files["sdxl"], form="peft")
    facts = {"unet.lora_alpha": 3, "text_encoder.lora_alpha": 6, "text_encoder_2.lora_alpha": 12}
    save_file(load_file(item.path), item.path, {"lora_adapter_metadata": json.dumps(facts)})
    checkpoint, base = merged(files["sdxl"], [(item, 1.0)]), plain(files["sdxl"])
    for kind, factor in (("clip_l", 2.0), ("clip_g", 4.0)):
        module = TE_LAYERS[kind][0].removeprefix("text_model." if kind == "clip_l" else "")
        parts = [c.encoders[kind].load(torch.float32, "cpu") for c in (checkpoint, base)]
        weights = [part.get_submodule(module).weight for part in parts]
        pair = item.encoders[kind][TE_LAYERS[kind][0]]
        expected = factor * change(pair, weights[0].shape)
        torch.testing.assert_close(
            (weights[0] - weights[1]).double(), expected, rtol=1e-3, atol=1e-5
        )

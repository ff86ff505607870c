"""In a real ComfyUI: what is evaluated, image to image, inpainting, stages, and what is refused.

Needs COMFYUI_DIR, and COMFYUI_PYTHON where that is not the folder's own `.venv` or `venv`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import lora_networks
import pytest
import torch
from comfyui_files import small_unet
from comfyui_graphs import drawn, graph_with, ksampler, node, ours
from comfyui_server import FOLDER, ComfyUI, Graph, needs_comfyui
from dpdmd_studio.core.lora.file import NewLora, write_lora
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.recipe import METADATA_KEY, Recipe
from dpdmd_studio.trainer.model.network import NetworkCall
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = needs_comfyui
SD1 = default_recipe("sd1", "eps")
LEVELS = pytest.approx(SD1.sigmas[:-1], rel=1e-3)
FILES = {"sd1": ("sd1.safetensors", "few.safetensors")}
SOURCE = Path(str(FOLDER)) / "comfy" / "sd.py"
CORE_ATTACHES = SOURCE.is_file() and "lora_metadata" in SOURCE.read_text()
"""Whether the core LoRA loader leaves a file's metadata on the MODEL; it does since 0.21.1."""
SAME = 1e-5
"""Largest difference of fp32 latents, in their standard deviations, between two ways to draw."""


@pytest.fixture(scope="module")
def network(comfyui: ComfyUI) -> NetworkCall:
    """An SD 1.x checkpoint among the server's."""
    return small_unet("sd1", comfyui.base / "models" / "checkpoints")[0]


@pytest.fixture(scope="module", autouse=True)
def few(comfyui: ComfyUI, network: NetworkCall) -> Path:
    """A few-step LoRA for it."""
    return lora(comfyui, network, "few", SD1)


def lora(
    comfyui: ComfyUI, network: NetworkCall, name: str, recipe: Recipe, form: str = "kohya"
) -> Path:
    """A random LoRA with a recipe among the server's."""
    path = comfyui.base / "models" / "loras" / f"{name}.safetensors"
    config = dict(network.network.config)
    pairs = lora_networks.random_pairs(network.network, network.family, config)
    return write_lora(
        path, NewLora(network.family, config, pairs, recipe), format=form, overwrite=True
    )


def with_recipe(source: Path, name: str, text: str | None) -> str:
    """The same LoRA with that text for a recipe; its name."""
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata())
    metadata.pop(METADATA_KEY)
    metadata |= {} if text is None else {METADATA_KEY: text}
    save_file(load_file(source), source.with_name(name), metadata)
    return name


def noted(model: str, path: Path) -> dict:
    """A model that writes its evaluations down."""
    return node("NoteEvaluations", model=[model, 0], path=str(path))


def evaluations(path: Path) -> list[tuple[float, int, int]]:
    """(level, batch, parts of guidance) of each evaluation."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(float(sigma), int(batch), int(parts)) for sigma, batch, parts in lines]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference in standard deviations."""
    return float((a - b).abs().max() / b.std())


def saved(graph: Graph, comfyui: ComfyUI, folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """The latents at some nodes."""
    return drawn(comfyui, graph, *names, folder=folder)


def text_of(outputs: dict, name: str) -> str:
    """What a node shows."""
    return outputs[name]["text"][0]


# What is evaluated


def test_guidance_1_evaluates_each_step_once(comfyui, tmp_path):
    ways = {
        "one": ours(model=["note one", 0], negative=["no", 0]),
        "entry": ksampler("dp_dmd", "dp_dmd", "note entry"),
        "plain": ksampler("euler", "simple", "note plain"),
    }
    notes = {f"note {way}": noted("lora", tmp_path / way) for way in ways}
    graph = graph_with("sd1", FILES, **ways, **notes)
    saved(graph, comfyui, tmp_path, *ways)
    for way in ways:
        found = evaluations(tmp_path / way)
        assert [sigma for sigma, _, _ in found] == LEVELS, way
        assert {(batch, parts) for _, batch, parts in found} == {(2, 1)}, way


def test_image_to_image_evaluates_trained_levels_alone(comfyui, tmp_path):
    """Half of eight levels: the host notes to level 499; below it only 249 is trained."""
    again = {"latent_image": ["first", 0], "denoise": 0.5}
    ways = {
        "one": ours(model=["note one", 0], **again),
        "entry": ksampler("dp_dmd", "dp_dmd", "note entry", **again),
        "habit": ksampler("dp_dmd", "karras", "note habit", **again),
        "plain": ksampler("euler", "simple", "note plain", steps=2, **again),
    }
    notes = {f"note {way}": noted("lora", tmp_path / way) for way in ways}
    graph = graph_with("sd1", FILES, first=ours(seed=1), **ways, **notes)
    found = saved(graph, comfyui, tmp_path, *ways)
    trained = pytest.approx(SD1.sigmas[2:4], rel=1e-3)
    for way in ("one", "entry", "plain"):
        assert [sigma for sigma, _, _ in evaluations(tmp_path / way)] == trained, way
    assert difference(found["one"], found["plain"]) <= SAME
    assert difference(found["entry"], found["plain"]) <= SAME
    first, *below = [sigma for sigma, _, _ in evaluations(tmp_path / "habit")]
    assert first < SD1.sigmas[0] and below == pytest.approx(
        [sigma for sigma in SD1.sigmas[1:-1] if sigma < first], rel=1e-3
    )


def test_two_stages_of_ksampler_advanced_are_one_trajectory(comfyui, tmp_path):
    common = {
        "positive": ["yes", 0], "negative": ["no", 0], "steps": 4, "cfg": 1.0, "noise_seed": 5,
        "sampler_name": "dp_dmd", "scheduler": "dp_dmd", "model": ["note", 0],
    }  # fmt: skip
    first = {"start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "enable"}
    second = {"start_at_step": 2, "end_at_step": 99, "return_with_leftover_noise": "disable"}
    graph = graph_with(
        "sd1", FILES, note=noted("lora", tmp_path / "note"), whole=ours(),
        half=node("KSamplerAdvanced", add_noise="enable", latent_image=["latent", 0],
                  **common, **first),
        rest=node("KSamplerAdvanced", add_noise="disable", latent_image=["half", 0],
                  **common, **second),
    )  # fmt: skip
    found = saved(graph, comfyui, tmp_path, "whole", "half", "rest")
    assert [sigma for sigma, _, _ in evaluations(tmp_path / "note")] == LEVELS
    assert difference(found["rest"], found["whole"]) <= SAME
    assert difference(found["half"], found["whole"]) > 0.1


# What is drawn


@pytest.mark.parametrize(("solver", "core"), [("ode", "euler"), ("sde", "lcm")])
def test_masks_and_batch_indices_count_as_in_the_core_sampler(
    comfyui, network, solver, core, tmp_path
):
    recipe = dataclasses.replace(SD1, solver=solver, plain_host="")
    name = lora(comfyui, network, f"few-{solver}", recipe).name
    files = {"sd1": (FILES["sd1"][0], name)}
    graph = graph_with(
        "sd1", files, first=ours(seed=1),
        picked=node("LatentFromBatch", samples=["first", 0], batch_index=1, length=1),
        left=node("SolidMask", value=0.0, width=32, height=64),
        mask=node("SolidMask", value=1.0, width=64, height=64),
        half=node("MaskComposite", destination=["mask", 0], source=["left", 0], x=0, y=0,
                  operation="multiply"),
        masked=node("SetLatentNoiseMask", samples=["picked", 0], mask=["half", 0]),
        one=ours(latent_image=["masked", 0]),
        entry=ksampler("dp_dmd", "dp_dmd", "lora", latent_image=["masked", 0]),
        plain=ksampler(core, "simple", latent_image=["masked", 0]),
    )  # fmt: skip
    found = saved(graph, comfyui, tmp_path, "picked", "one", "entry", "plain")
    assert difference(found["one"], found["plain"]) <= SAME
    assert difference(found["entry"], found["plain"]) <= SAME
    kept = (found["one"] - found["picked"]).abs()
    assert kept[..., :4].max() <= 1e-4 < kept[..., 4:].mean()


def test_a_controlnet_and_regions_count_as_in_the_core_sampler(comfyui, tmp_path):
    """Alone and with each other; that they are seen at all is looked at, too."""
    image = node("EmptyImage", width=64, height=64, batch_size=1, color=0x40C020)
    applied = {"control_net": ["control", 0], "image": ["image", 0], "strength": 0.8}
    applied |= {"start_percent": 0.0, "end_percent": 1.0, "negative": ["no", 0]}
    half = {"width": 0.5, "height": 1.0, "y": 0.0, "strength": 1.0}
    conditions = {
        "image": image,
        "control": node("RandomControlNet", model=["model", 0]),
        "led": node("ControlNetApplyAdvanced", positive=["yes", 0], **applied),
        "left": node("ConditioningSetAreaPercentage", conditioning=["yes", 0], x=0.0, **half),
        "right": node("ConditioningSetAreaPercentage", conditioning=["no", 0], x=0.5, **half),
        "parts": node("ConditioningCombine", conditioning_1=["left", 0],
                      conditioning_2=["right", 0]),
        "both": node("ControlNetApplyAdvanced", positive=["parts", 0], **applied),
    }  # fmt: skip
    samplers = {"plain": ksampler("euler", "simple")}
    for name in ("led", "parts", "both"):
        told = {"positive": [name, 0]}
        samplers[f"{name} ours"] = ours(**told)
        samplers[f"{name} entry"] = ksampler("dp_dmd", "dp_dmd", "lora", **told)
        samplers[f"{name} core"] = ksampler("euler", "simple", **told)
    graph = graph_with("sd1", FILES, **conditions, **samplers)
    found = saved(graph, comfyui, tmp_path, *samplers)
    for name in ("led", "parts", "both"):
        core = found[f"{name} core"]
        assert difference(found[f"{name} ours"], core) <= SAME
        assert difference(found[f"{name} entry"], core) <= SAME
        assert difference(core, found["plain"]) > 0.05


def test_a_style_lora_on_top_keeps_the_recipe(comfyui, few, tmp_path):
    """Two steps in the recipe, so that the family's usual four would show."""
    two = default_recipe("sd1", "eps", num_steps=2)
    name = with_recipe(few, "two.safetensors", two.to_json())
    style = with_recipe(few, "style.safetensors", None)
    over = {"lora_name": style, "strength_model": 0.1, "model": ["lora", 0]}
    graph = graph_with(
        "sd1", {"sd1": (FILES["sd1"][0], name)},
        ours=node("DPDMDLoadLora", model=["core", 0], lora_name=style, strength=0.1),
        **{"by core": node("LoraLoaderModelOnly", **over),
           "over core": node("LoraLoaderModelOnly", **(over | {"model": ["core", 0]}))},
    )  # fmt: skip
    for way in ("ours", "by core", "over core"):
        graph[f"sample {way}"] = ours(model=[way, 0])
        graph[f"save {way}"] = node(
            "SaveTensors", path=str(tmp_path / way), latent=[f"sample {way}", 0]
        )
    outputs = comfyui.run(graph)
    for way in ("ours", "by core") if CORE_ATTACHES else ("by core",):
        assert text_of(outputs, f"sample {way}").startswith("2 steps, CFG 1"), way
    over = text_of(outputs, "sample over core")  # the core loader keeps no metadata under others
    assert over.startswith("2 steps, CFG 1") and "which this graph loads with LoraLoaderM" in over
    kept = "The recipe is that of the few-step LoRA under it" in text_of(outputs, "ours")
    assert kept is CORE_ATTACHES


def test_a_lora_of_any_loader_and_a_saved_merge_have_their_recipe(comfyui, few, tmp_path):
    """Core's bypass loader leaves no metadata, and core's savers none of the LoRA's."""
    two = with_recipe(few, "two.safetensors", default_recipe("sd1", "eps", num_steps=2).to_json())
    files = {"sd1": (FILES["sd1"][0], two)}
    graph = graph_with(
        "sd1", files, one=ours(),
        bypass=node("LoraLoaderBypassModelOnly", model=["model", 0], lora_name=two,
                    strength_model=1.0),
        beside=ours(model=["bypass", 0]),
        keep=node("ModelSave", model=["core", 0], filename_prefix="diffusion_models/merged"),
    )  # fmt: skip
    for way in ("one", "beside"):
        path = str(tmp_path / f"{way}.safetensors")
        graph[f"save {way}"] = node("SaveTensors", path=path, latent=[way, 0])
    outputs = comfyui.run(graph)
    said = text_of(outputs, "beside")
    assert said.startswith("2 steps, CFG 1")
    assert "that of two.safetensors, which this graph loads with LoraLoaderBypassM" in said
    found = {way: load_file(tmp_path / f"{way}.safetensors")["latent"] for way in ("one", "beside")}
    assert difference(found["beside"], found["one"]) <= 1e-3
    merged = node("UNETLoader", unet_name="merged_00001_.safetensors", weight_dtype="default")
    graph = graph_with("sd1", files, merged=merged, one=ours(model=["merged", 0]))
    graph["save"] = node("SaveTensors", path=str(tmp_path / "merged"), latent=["one", 0])
    said = text_of(comfyui.run(graph), "one")
    assert said.startswith("2 steps, CFG 1") and "is merged into this checkpoint" in said


def test_a_model_that_predicts_v_takes_a_recipe_that_does(comfyui, few, tmp_path):
    v = default_recipe("sd1", "v", zero_terminal_snr=True)
    name = with_recipe(few, "v.safetensors", v.to_json())
    sampling = node("ModelSamplingDiscrete", model=["model", 0], sampling="v_prediction", zsnr=True)
    graph = graph_with("sd1", {"sd1": (FILES["sd1"][0], name)}, v=sampling)
    graph["core"]["inputs"]["model"] = graph["lora"]["inputs"]["model"] = ["v", 0]
    graph |= {
        "note": noted("lora", tmp_path / "note"), "one": ours(model=["note", 0]),
        "plain": ksampler("euler", "simple"),
    }  # fmt: skip
    found = saved(graph, comfyui, tmp_path, "one", "plain")
    levels = [sigma for sigma, _, _ in evaluations(tmp_path / "note")]
    assert levels == pytest.approx(v.sigmas[:-1], rel=1e-3) and levels[0] > 4000
    assert difference(found["one"], found["plain"]) <= 1e-3
    graph["lora"]["inputs"]["model"] = ["model", 0]
    message = comfyui.failure(with_output(graph, tmp_path))
    assert "v-prediction, but this model predicts eps" in message
    assert "put ModelSamplingDiscrete with v_prediction" in message


# What is refused, or said


def test_forms_of_lora_that_the_host_reads_in_part_or_not_are_said(comfyui, network, few, tmp_path):
    lora(comfyui, network, "peft", SD1, "peft")
    parts = {key: value for key, value in load_file(few).items() if "attn2_to_k" in key}
    wide = {
        key: torch.ones(value.shape[0], 1024) if "lora_down" in key else value
        for key, value in parts.items()
    }
    save_file(wide, few.with_name("wide.safetensors"), {METADATA_KEY: SD1.to_json()})
    outputs = comfyui.run(with_output(loading("peft.safetensors"), tmp_path))
    assert "modules of the LoRA were applied: ComfyUI does not know" in text_of(outputs, "lora")
    assert "have the names of this model's, and other sizes" in comfyui.failure(
        with_output(loading("wide.safetensors"), tmp_path)
    )
    outputs = comfyui.run(with_output(loading("few.safetensors", strength=0.5), tmp_path))
    assert "at strength 0.5; it was trained for 1.0" in text_of(outputs, "lora")
    assert "applied" not in text_of(outputs, "lora")


def loading(name: str, **changed: object) -> Graph:
    """A graph that loads a LoRA onto the SD 1.x checkpoint."""
    graph = graph_with("sd1", {"sd1": (FILES["sd1"][0], name)})
    graph["lora"]["inputs"] |= changed
    return graph


def with_output(graph: Graph, folder: Path) -> Graph:
    """The graph with the levels of its model saved, so that it has an output."""
    levels = node("DPDMDSampler", model=["lora", 0], steps=0, denoise=1.0)
    save = node("SaveTensors", path=str(folder / "levels.safetensors"), sigmas=["levels", 1])
    return {**graph, "levels": levels, "save": save}


def refused(few: Path) -> dict[str, tuple[str, str]]:
    """(LoRA, part of the message) of what must not be sampled."""
    newer = json.dumps({**json.loads(SD1.to_json()), "version": 2})
    sd3 = default_recipe("sd3", "flow").to_json()
    sdxl = default_recipe("sdxl", "eps").to_json()
    few.with_name("cut.safetensors").write_bytes(few.read_bytes()[:-100])
    return {
        "newer": (with_recipe(few, "newer.safetensors", newer), "has version 2, and this program"),
        "broken": (with_recipe(few, "broken.safetensors", "{"), "recipe is not valid JSON"),
        "sd3": (with_recipe(few, "sd3.safetensors", sd3), "was made for SD3, but the model is SD"),
        "sdxl": (with_recipe(few, "sdxl.safetensors", sdxl), "was made for SDXL, but the model"),
        "cut": ("cut.safetensors", "The LoRA cannot be read"),
    }


def test_what_cannot_be_sampled_is_refused_and_the_host_goes_on(comfyui, few, tmp_path):
    for case, (name, message) in refused(few).items():
        assert message in comfyui.failure(with_output(loading(name), tmp_path)), case
        if case == "cut" or not CORE_ATTACHES:
            continue  # the core loader refuses the one, and leaves no recipe of the others
        graph = loading(name) | {"entry": ksampler("dp_dmd", "dp_dmd")}
        graph["save"] = node(
            "SaveTensors", path=str(tmp_path / "no.safetensors"), latent=["entry", 0]
        )
        assert message in comfyui.failure(graph), f"{case}, by the dropdown"
    assert not (tmp_path / "levels.safetensors").exists()
    graph = graph_with("sd1", FILES, one=ours())
    assert saved(graph, comfyui, tmp_path, "one")["one"].isfinite().all()


def test_attention_passes_through_on_a_cpu_or_draws_the_same(comfyui, tmp_path):
    graph = graph_with("sd1", FILES, plain=ours())
    for backend in ("auto", "pytorch"):
        graph[f"{backend} model"] = node("DPDMDAttention", model=["lora", 0], backend=backend)
        graph[backend] = ours(model=[f"{backend} model", 0])
    names = ("plain", "auto", "pytorch")
    found = saved(graph, comfyui, tmp_path, *names)
    assert torch.equal(found["auto"], found["plain"])
    assert difference(found["pytorch"], found["plain"]) <= 1e-4
    graph["auto model"]["inputs"]["backend"] = "xformers"
    graph["save"] = node("SaveTensors", path=str(tmp_path / "again"), latent=["auto", 0])
    said = text_of(comfyui.run(graph), "auto model")
    assert said.startswith("Nothing was changed: xformers is not usable") and "ComfyUI uses" in said

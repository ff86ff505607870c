"""A few-step LoRA whose loader left nothing of its file behind is found by the graph."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy_host
import pytest
import torch
from comfy_host import Model
from dpdmd_studio.comfy_nodes.host import graph as host_graph
from dpdmd_studio.comfy_nodes.sampling import few_step
from dpdmd_studio.comfy_nodes.sampling.recipes import find_recipe, has_recipe
from dpdmd_studio.core.recipe.few_step import default_recipe
from safetensors.torch import save_file

SD3 = default_recipe("sd3", "flow")
TWO = default_recipe("sd3", "flow", num_steps=2)
THREE = default_recipe("sd3", "flow", num_steps=3)
TYPES = {
    "Load": ("MODEL", "CLIP", "VAE"), "Power": ("MODEL", "CLIP"), "Stack": ("LORA_STACK",),
    "Apply": ("MODEL",), "Text": ("CONDITIONING",), "LoraLoaderBypass": ("MODEL", "CLIP"),
    "CFGGuider": ("GUIDER",), "DPDMDDistill": ("LORA_MODEL",),
}  # fmt: skip
LOADER = {"class_type": "Load", "inputs": {"ckpt_name": "x.safetensors"}}
ON = {"on": True, "lora": "two.safetensors", "strength": 1.0}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(autouse=True)
def comfy(tmp_path, monkeypatch):
    """A ComfyUI with a LoRA of two steps and one of three; `run` sets the graph that runs."""
    found = comfy_host.install(monkeypatch, tmp_path)
    comfy_host.write_lora(tmp_path, "two.safetensors", TWO)
    comfy_host.write_lora(tmp_path, "three.safetensors", THREE)
    comfy_host.write_lora(tmp_path, "style.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    utils, server, nodes = (ModuleType(name) for name in ("u", "server", "nodes"))
    context = SimpleNamespace(prompt_id="p", node_id="9")
    queue = SimpleNamespace(currently_running={})
    vars(utils)["get_executing_context"] = lambda: context
    vars(server)["PromptServer"] = SimpleNamespace(
        instance=SimpleNamespace(
            prompt_queue=queue, send_progress_text=lambda text, at: found.told.append((at, text))
        )
    )
    classes = {name: SimpleNamespace(RETURN_TYPES=types) for name, types in TYPES.items()}
    vars(nodes)["NODE_CLASS_MAPPINGS"] = classes
    for name, module in (("comfy_execution", ModuleType("c")), ("comfy_execution.utils", utils),
                         ("server", server), ("nodes", nodes)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    found.told = []
    found.run = lambda **graph: queue.currently_running.update({0: (0, "p", graph, {}, [])})
    return found


def patched() -> Model:
    model = Model(SD3)
    model.patches = {"first.weight": [(1.0, None, 1.0, None, None)]}
    return model


def steps_of(model: Model, source: str = "model") -> int:
    return find_recipe(model, source=source).recipe.num_steps


@pytest.mark.parametrize(
    "loader",
    [
        node("LoraLoaderBypass", model=["1", 0], lora_name="two.safetensors", strength_model=0.5),
        node("Power", model=["1", 0], lora_1=ON, lora_2={**ON, "lora": "style.safetensors"}),
        node("Power", model=["1", 0], lora_name_1="three.safetensors", switch_1="Off",
             lora_name_2="two", switch_2="On"),
        node("Power", model=["1", 0], a=ON, b={**ON, "lora": "three.safetensors", "on": False}),
        node("Power", model=["1", 0], text="a cat <lora:two:0.7>"),
        node("Power", model=["1", 0], lora_name="broken.safetensors", text="<lora:two>"),
    ],
)  # fmt: skip
def test_other_loaders_leave_no_recipe_and_the_graph_names_the_file(comfy, loader):
    comfy.run(**{"1": LOADER, "2": loader, "9": node("DPDMDKSampler", model=["2", 0])})
    found = find_recipe(patched(), source="model")
    assert found.recipe.num_steps == 2
    assert found.notes[0] == (
        "The recipe is that of two.safetensors, which this graph loads with "
        f"{loader['class_type']}."
    )


def test_a_lora_at_strength_0_is_not_on(comfy):
    off = node("LoraLoaderBypass", model=["1", 0], lora_name="two.safetensors", strength_model=0)
    comfy.run(**{"1": LOADER, "2": off, "9": node("DPDMDKSampler", model=["2", 0])})
    assert steps_of(patched()) == 4
    off["inputs"]["strength_model"] = 0.4
    found = find_recipe(patched(), source="model")
    assert found.recipe == TWO and "two.safetensors is at strength 0.4" in found.notes[1]


def test_stacks_are_followed_and_other_wires_not(comfy):
    stack = node("Stack", lora_name_1="two.safetensors", model_str_1=1.0)
    distil = node("DPDMDDistill", teacher_lora="three.safetensors")
    comfy.run(**{
        "1": LOADER, "2": stack, "3": distil, "4": node("Text", text="<lora:three:1>"),
        "5": node("Apply", model=["1", 0], lora_stack=["2", 0], lora=["3", 0], text=["4", 0]),
        "6": node("CFGGuider", model=["5", 0]),
        "9": node("SamplerCustomAdvanced", guider=["6", 0]),
    })  # fmt: skip
    assert steps_of(patched(), "") == 2
    assert has_recipe(patched())


def test_each_input_has_loras_of_its_own(comfy):
    two = node("Power", model=["1", 0], lora_name="two.safetensors")
    three = node("Power", model=["1", 0], lora_name="three.safetensors")
    comfy.run(**{
        "1": LOADER, "2": two, "3": three,
        "9": node("DPDMDCompareSeeds", model_a=["2", 0], model_b=["3", 0]),
    })  # fmt: skip
    assert [steps_of(patched(), f"model_{name}") for name in "ab"] == [2, 3]


def test_a_graph_that_goes_round_or_names_nobody_ends(comfy):
    comfy.run(**{"1": node("Power", model=["1", 0]), "9": node("x", model=["1", 0])})
    assert host_graph.loras_before(*host_graph.here(), "model") == []
    comfy.run(**{"9": node("x", model=["gone", 0])})
    assert steps_of(patched()) == 4
    comfy.run(**{"9": None})  # type: ignore[arg-type]
    assert steps_of(patched()) == 4


def test_without_a_lora_on_the_model_the_graph_is_not_believed(comfy):
    """Its loader may have been given nothing that fits."""
    loader = node("Power", model=["1", 0], lora_name="two.safetensors")
    comfy.run(**{"1": LOADER, "2": loader, "9": node("DPDMDKSampler", model=["2", 0])})
    assert find_recipe(Model(SD3), source="model").notes[0].startswith("No LoRA is on this MODEL")


@pytest.mark.parametrize("kind", ["CheckpointSave", "ModelSave"])
def test_a_saved_merge_has_the_recipe_of_what_was_merged(comfy, tmp_path, kind):
    """Core writes the graph into the file, and nothing of the LoRA."""
    merged = {
        "1": LOADER, "2": node("Power", model=["1", 0], lora_name="two.safetensors"),
        "3": node("Power", model=["2", 0], lora_name="three.safetensors"),
        "5": node(kind, model=["2", 0]), "6": node("KSampler", model=["3", 0]),
    }  # fmt: skip
    file = tmp_path / "merged.safetensors"
    save_file({"x": torch.zeros(1)}, file, {"prompt": json.dumps(merged)})
    model = Model(SD3)
    model.cached_patcher_init = (None, (str(file),))  # type: ignore[attr-defined]
    found = find_recipe(model)
    assert found.recipe.num_steps == 2 and "merged into this checkpoint" in found.notes[0]
    for text in ("[", "[]", '{"5": 3}', '{"5": {"class_type": "CheckpointSave", "inputs": []}}'):
        save_file({"x": torch.zeros(1)}, file, {"prompt": text})
        assert steps_of(model, "") == 4


def test_the_dropdown_says_on_the_node_what_is_not_the_recipes(comfy, caplog):
    model = patched()
    two = node("Power", model=["1", 0], lora_name="two.safetensors")
    comfy.run(**{"1": LOADER, "2": two, "9": node("KSampler", model=["2", 0])})
    guider = SimpleNamespace(model_patcher=model, cfg=7.0)

    class Denoiser:
        inner_model = guider

        def __call__(self, x, sigma, **_):
            return x * 0

    sigmas = few_step.schedule(comfy_host.sampling(SD3), 4)
    few_step.few_step_sampler(Denoiser(), torch.zeros(1, 4, 2, 2), sigmas, {})
    ((at, text),) = comfy.told
    assert at == "9"
    assert text.splitlines() == [
        "4 steps are set, and the LoRA was trained for 2: set steps to 2.",
        "CFG 7 is set, and the LoRA was trained for 1: set cfg to 1. With CFG above 1 images are "
        "overexposed, and each step costs two evaluations.",
        "The recipe is that of two.safetensors, which this graph loads with Power.",
    ]
    assert "CFG 7 is set" in caplog.text
    guider.cfg = 1.0
    comfy.told.clear()
    few_step.few_step_sampler(Denoiser(), torch.zeros(1, 4, 2, 2), sigmas[[0, 2, 4]], {})
    assert [text.splitlines()[0][:10] for _, text in comfy.told] == ["The recipe"]

"""A stand-in for ComfyUI: as much of its modules and its MODEL as the sampling nodes touch."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from dpdmd_studio.core.recipe.few_step import schedule_of
from dpdmd_studio.core.recipe.recipe import METADATA_KEY, Recipe
from safetensors import safe_open
from safetensors.torch import load_file, save_file

KINDS = {"eps": ("EPS",), "v": ("V_PREDICTION", "EPS"), "flow": ("CONST",), "x0": ("X0", "EPS")}
CLASSES = {"sd1": "BaseModel", "sdxl": "SDXL", "sd3": "SD3"}


def sampling(recipe: Recipe, *kinds: str) -> Any:
    """A model_sampling with the whole table of levels of a recipe's schedule."""
    bases: tuple[type, ...] = ()
    for kind in reversed(kinds or KINDS[recipe.prediction]):
        bases = (type(kind, bases, {}),)
    found = type("ModelSampling", bases, {})()
    found.sigmas = schedule_of(recipe).sigma_at(torch.arange(1000, dtype=torch.float64))
    found.zsnr = recipe.zero_terminal_snr
    if recipe.prediction == "flow":
        found.shift = recipe.shift
    return found


class Model:
    """A ModelPatcher: weights that clones share, patches and attachments of its own."""

    def __init__(self, recipe: Recipe, name: str = "", *kinds: str) -> None:
        self.model = type(name or CLASSES[recipe.family], (), {})()
        context = {"sd1": 768, "sdxl": 2048}.get(recipe.family)
        self.model.model_config = SimpleNamespace(unet_config={"context_dim": context})
        self.weights = {"first.weight": torch.zeros(8, 768), "last.weight": torch.zeros(4, 6, 3, 3)}
        self.model.state_dict = lambda: self.weights
        self.model.get_dtype = lambda: torch.float32
        self.load_device = "cpu"
        self.sampling = sampling(recipe, *kinds)
        self.patches: dict[str, list[Any]] = {}
        self.object_patches: dict[str, Any] = {}
        self.attachments: dict[str, Any] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {"kept": 1}}

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return self.object_patches.get(name, self.sampling)

    def add_object_patch(self, name: str, value: Any) -> None:
        self.object_patches[name] = value

    def clone(self) -> Model:
        twin = copy.copy(self)
        twin.patches = {key: list(patches) for key, patches in self.patches.items()}
        twin.attachments = dict(self.attachments)
        twin.object_patches = dict(self.object_patches)
        twin.model_options = copy.deepcopy(self.model_options)
        return twin

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def with_core_lora(self, metadata: dict[str, str]) -> Model:
        """As the core loader leaves it behind."""
        twin = self.clone()
        twin.set_attachments("lora_metadata", metadata)
        return twin

    def with_recipe(self, recipe: Recipe) -> Model:
        """As the core loader leaves it behind after a LoRA with that recipe."""
        return self.with_core_lora({METADATA_KEY: recipe.to_json()})


class DiscreteFlow:
    """comfy.model_sampling.ModelSamplingDiscreteFlow, as far as it is asked for its shift."""

    def __init__(self, model_config: Any) -> None:
        self.shift, self.multiplier = 1.0, 0

    def set_parameters(self, shift: float, multiplier: int) -> None:
        self.shift, self.multiplier = shift, multiplier


class Adapter:
    """A LoRA's update as ComfyUI holds it."""

    name = "lora"

    def __init__(self, up: torch.Tensor, down: torch.Tensor) -> None:
        self.weights = (up, down, None, None, None, None)


NAMES = {"lora_unet_input_blocks_1_1_proj_in": "first.weight", "lora_unet_out_2": "last.weight"}
"""Modules that the stand-in knows, by the name in a LoRA."""


def load_lora_for_models(model: Model, clip: None, lora: dict, strength: float, _: float) -> tuple:
    """As ComfyUI 0.3.60 has it: without an argument for the metadata."""
    twin = model.clone()
    for name, key in NAMES.items():
        if f"{name}.lora_up.weight" in lora:
            halves = (lora[f"{name}.lora_{half}.weight"] for half in ("up", "down"))
            patch = (strength, Adapter(*halves), 1.0, None, None)
            twin.patches.setdefault(key, []).append(patch)
    return twin, clip


def lora_tensors(width: int = 768, *more: str) -> dict[str, torch.Tensor]:
    """A LoRA for the stand-in's two modules, and others that it does not know."""
    torch.manual_seed(0)
    first, last = NAMES
    found = {
        f"{first}.lora_down.weight": torch.randn(2, width),
        f"{first}.lora_up.weight": torch.randn(8, 2),
        f"{last}.lora_down.weight": torch.randn(2, 6, 3, 3),
        f"{last}.lora_up.weight": torch.randn(4, 2, 1, 1),
    }
    for name in more:
        found[f"{name}.lora_down.weight"] = torch.randn(2, width)
        found[f"{name}.lora_up.weight"] = torch.randn(8, 2)
    return found


def write_lora(
    folder: Path,
    name: str,
    recipe: Recipe | str | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
) -> str:
    """A LoRA file with a recipe, or any text for one; its name."""
    text = recipe.to_json() if isinstance(recipe, Recipe) else recipe
    metadata = {"ss_output_name": name} | ({} if text is None else {METADATA_KEY: text})
    save_file(lora_tensors() if tensors is None else tensors, folder / name, metadata)
    return name


class Samplers(ModuleType):
    """comfy.samplers and comfy.k_diffusion.sampling, as far as the dropdowns go."""

    def __init__(self) -> None:
        super().__init__("comfy.samplers")
        self.KSAMPLER_NAMES = ["euler", "lcm"]
        self.SAMPLER_NAMES = [*self.KSAMPLER_NAMES, "ddim"]
        self.SCHEDULER_HANDLERS: dict[str, Any] = {"simple": None}
        self.SCHEDULER_NAMES = ["simple"]
        self.SchedulerHandler = lambda function, use_ms: (function, use_ms)
        self.KSAMPLER = lambda function, options: SimpleNamespace(function=function, **options)


def default_noise_sampler(x: torch.Tensor, seed: int | None = None) -> Any:
    """As ComfyUI draws on the CPU: the stream of the next seed."""
    generator = torch.Generator().manual_seed((seed or 0) + 1)
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator)


class Bar:
    """comfy.k_diffusion.sampling.trange, as far as samplers of ours move it; knows the last one."""

    last: Bar

    def __init__(self, total: int, disable: bool | None = None) -> None:
        self.total, self.disable, self.done, self.closed = total, disable, 0, False
        Bar.last = self

    def update(self) -> None:
        self.done += 1

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Core's Euler sampler."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **(extra_args or {}))
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def install(monkeypatch: pytest.MonkeyPatch, loras: Path) -> Samplers:
    """Put the stand-in where `import comfy` finds it; its `comfy.samplers`."""
    samplers, sampling_module = Samplers(), ModuleType("comfy.k_diffusion.sampling")
    vars(sampling_module)["default_noise_sampler"] = default_noise_sampler
    vars(sampling_module)["trange"] = Bar
    vars(sampling_module)["sample_euler"] = sample_euler

    def load_torch_file(path: str, *, safe_load: bool, return_metadata: bool) -> tuple:
        with safe_open(path, "pt") as file:
            return load_file(path), file.metadata()

    def full_path(kind: str, name: str) -> str | None:
        return str(loras / name) if (loras / name).is_file() else None

    modules: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.k_diffusion": {},
        "comfy.sd": {"load_lora_for_models": load_lora_for_models},
        "comfy.model_sampling": {
            "ModelSamplingDiscreteFlow": DiscreteFlow,
            "CONST": type("CONST", (), {}),
        },
        "comfy.utils": {"load_torch_file": load_torch_file},
        "comfy.ldm": {},
        "comfy.ldm.modules": {},
        "comfy.ldm.modules.attention": {
            "optimized_attention": SimpleNamespace(__name__="attention_sub_quad")
        },
        "folder_paths": {
            "get_full_path": full_path,
            "get_folder_paths": lambda kind: [str(loras)],
            "get_filename_list": lambda kind: sorted(path.name for path in loras.iterdir()),
        },
    }
    for name, attributes in modules.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        _insert(monkeypatch, name, module)
    _insert(monkeypatch, "comfy.samplers", samplers)
    _insert(monkeypatch, "comfy.k_diffusion.sampling", sampling_module)
    return samplers


def _insert(monkeypatch: pytest.MonkeyPatch, name: str, module: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)

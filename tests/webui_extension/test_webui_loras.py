"""Taking one LoRA off, on stand-ins for the patchers of reForge and Forge Neo."""

from __future__ import annotations

import sys
import uuid
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from dpdmd_studio.webui_extension.host import folders, loras, scripts

X = torch.zeros(1, 4, 8, 8)
BASE = {"a": 1.0, "b": 10.0}
FILES = {"few": {"a": 0.5, "b": 1.0}, "style": {"a": 0.25}}
"""What each LoRA adds to each weight at strength 1."""


class Patcher:
    """ModelPatcher of both hosts: lists of patches by weight, and a mark that says which are on."""

    def __init__(self, model: SimpleNamespace) -> None:
        self.model, self.patches, self.patches_uuid = model, {}, uuid.uuid4()

    def clone(self) -> Patcher:
        other = Patcher(self.model)
        other.patches = {key: list(patches) for key, patches in self.patches.items()}
        other.patches_uuid = self.patches_uuid
        return other

    def add_patches(self, patches: dict[str, float], strength: float) -> None:
        for key, value in patches.items():
            self.patches.setdefault(key, []).append((strength, value, 1.0, None, None))
        self.patches_uuid = uuid.uuid4()


def sampling_prepare(unet: Patcher, x: torch.Tensor) -> None:
    """Weights follow the patcher where its mark is another than theirs; as load_models_gpu."""
    assert x is X
    model = unet.model
    if model.current_weight_patches_uuid != unet.patches_uuid:
        model.weights = dict(BASE)
        for key, patches in unet.patches.items():
            model.weights[key] += sum(strength * value for strength, value, *_ in patches)
        model.current_weight_patches_uuid = unet.patches_uuid


class Host:
    """A loaded model, and the built-in LoRA extension as both hosts have it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = SimpleNamespace(weights=dict(BASE), current_weight_patches_uuid=None)
        original = Patcher(self.model)
        self.sd = SimpleNamespace(
            forge_objects=SimpleNamespace(unet=original, clip="clip"),
            forge_objects_original=SimpleNamespace(unet=original, clip="clip"),
            forge_objects_after_applying_lora=SimpleNamespace(unet=original, clip="clip"),
            current_lora_hash="[]",
            is_sd1=True,
        )
        modules, shared = ModuleType("modules"), ModuleType("modules.shared")
        sd_models = ModuleType("modules.sd_models")
        shared.sd_model, modules.shared = self.sd, shared
        sd_models.model_data, modules.sd_models = SimpleNamespace(sd_model=self.sd), sd_models
        networks = ModuleType("networks")
        networks.loaded_networks, networks.load_networks = [], self.load_networks
        self.networks = networks
        sampling = ModuleType("modules_forge.forge_sampler")
        sampling.sampling_prepare = sampling_prepare
        for module in (modules, shared, sd_models, networks, sampling):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def load_networks(self, names: list[str], te: list[float], unet: list[float]) -> None:
        """As in extensions-builtin/Lora and sd_forge_lora."""
        self.networks.loaded_networks.clear()
        for name in names:
            on_disk = SimpleNamespace(filename=f"/loras/{name}.safetensors")
            self.networks.loaded_networks.append(
                SimpleNamespace(name=name, network_on_disk=on_disk)
            )
        rows = zip(names, unet, te, strict=True)
        targets = [[f"/loras/{name}.safetensors", u, t, False] for name, u, t in rows]
        if self.sd.current_lora_hash == str(targets):
            return
        self.sd.current_lora_hash = str(targets)
        objects, original = self.sd.forge_objects, self.sd.forge_objects_original
        objects.unet, objects.clip = original.unet, original.clip
        for name, strength in zip(names, unet, strict=True):
            objects.unet = objects.unet.clone()
            objects.unet.add_patches(FILES[name], strength)
        self.sd.forge_objects_after_applying_lora = SimpleNamespace(**vars(objects))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host in which a prompt has called a few-step LoRA and a style, and a neighbour patched."""
    found = Host(monkeypatch)
    found.load_networks(["few", "style"], [1.0, 1.0], [1.0, 0.8])
    patched = found.sd.forge_objects.unet.clone()
    patched.add_patches({"b": 100.0}, 1.0)  # such as an inpainting head, before every sampling
    found.sd.forge_objects.unet = patched
    sampling_prepare(patched, X)
    return found


ALL = {"a": 1 + 0.5 + 0.8 * 0.25, "b": 10 + 1.0 + 100}
WITHOUT = {"a": 1 + 0.8 * 0.25, "b": 10 + 100.0}


def test_one_lora_comes_off_and_all_else_stays(host):
    assert loras.can_take_loras_off() and host.model.weights == ALL
    objects, used = host.sd.forge_objects, host.sd.forge_objects.unet
    before = (host.sd.current_lora_hash, host.sd.forge_objects_after_applying_lora)
    with loras.loras_off(["few"], X):
        assert host.model.weights == pytest.approx(WITHOUT)
        assert objects.unet is not used
        assert [net.name for net in host.networks.loaded_networks] == ["few", "style"]
    assert host.model.weights == pytest.approx(ALL)
    assert objects.unet is used and objects.clip == "clip"
    assert before == (host.sd.current_lora_hash, host.sd.forge_objects_after_applying_lora)
    with loras.loras_off(["few", "style"], X):
        assert host.model.weights == {"a": 1.0, "b": 110.0}
    assert host.model.weights == pytest.approx(ALL)


def test_what_is_not_on_changes_nothing(host):
    with loras.loras_off(["other"], X):
        assert host.model.weights == pytest.approx(ALL)
    assert host.model.weights == pytest.approx(ALL)


def test_after_an_interruption_the_next_generation_has_all_loras(host):
    used = host.sd.forge_objects.unet
    with pytest.raises(InterruptedError), loras.loras_off(["few"], X):
        raise InterruptedError
    assert host.sd.forge_objects.unet is used
    sampling_prepare(used, X)
    assert host.model.weights == pytest.approx(ALL)


def test_a_host_with_another_patcher_says_that_it_cannot(host, monkeypatch):
    monkeypatch.delattr(host.sd, "current_lora_hash")
    assert not loras.can_take_loras_off()
    host.sd.current_lora_hash = ""
    assert loras.can_take_loras_off()
    monkeypatch.delitem(sys.modules, "modules_forge.forge_sampler")
    assert not loras.can_take_loras_off()


# The host's folders and its page


def test_all_folders_of_a_host_are_known_where_it_has_several_of_a_kind(monkeypatch, tmp_path):
    for name in ("usual", "loras", "more-loras", "checkpoints", "vaes", "encoders"):
        (tmp_path / name).mkdir()
    options = SimpleNamespace(
        lora_dir=tmp_path / "loras", lora_dirs=[tmp_path / "more-loras"],
        ckpt_dirs=[tmp_path / "checkpoints"], vae_dirs=[tmp_path / "vaes"],
        text_encoder_dirs=[tmp_path / "encoders"],
    )  # fmt: skip
    modules: Any = ModuleType("modules")
    modules.shared = SimpleNamespace(cmd_opts=options)
    modules.paths = SimpleNamespace(models_path=tmp_path / "models")
    modules.sd_models = SimpleNamespace(model_path=tmp_path / "usual")
    monkeypatch.setitem(sys.modules, "modules", modules)
    found = {folder.name for folder in folders.model_folders()}
    assert found == {"usual", "loras", "more-loras", "checkpoints", "vaes", "encoders"}
    assert folders.lora_folders() == [tmp_path / "loras", tmp_path / "more-loras"]


def test_controls_of_the_hosts_page_are_filled_once_all_are_made(monkeypatch):
    events: dict[str, Any] = {}
    monkeypatch.setattr(scripts, "on", lambda event, function: events.update({event: function}))
    scripts.watch_components()
    events["before_ui"]()
    made: list[Any] = []
    events["after_component"]("prompt", elem_id="txt2img_prompt")
    events["after_component"]("steps", elem_id="txt2img_steps")
    scripts.when_made(["txt2img_steps", "txt2img_cfg_scale"], made.append)
    events["after_component"]("other", elem_id="txt2img_seed")
    assert made == [] and scripts.component("txt2img_prompt") == "prompt"
    events["after_component"]("cfg", elem_id="txt2img_cfg_scale")
    events["after_component"]("again", elem_id="txt2img_cfg_scale")
    assert made == [["steps", "cfg"]]
    events["before_ui"]()
    assert scripts.component("txt2img_prompt") is None

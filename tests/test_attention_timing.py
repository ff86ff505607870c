"""Attention is timed on the network's shapes once, remembered, and noted in the run."""

from __future__ import annotations

import json
from typing import Any

import lora_networks
import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from dpdmd_studio.core.attention import forget_probes
from dpdmd_studio.trainer.attention import setup as attention_setup
from dpdmd_studio.trainer.attention import timing as attention_timing
from dpdmd_studio.trainer.attention.memory import machine_key
from dpdmd_studio.trainer.attention.setup import Workload, fastest, use_attention
from dpdmd_studio.trainer.attention.shapes import AttentionShape, attention_shapes
from dpdmd_studio.trainer.attention.timing import (
    SDPA,
    XFORMERS,
    Candidate,
    Trial,
    difference,
    measure,
)
from dpdmd_studio.trainer.commands.open_session import open_session
from tiny_runs import new_run

CPU = torch.device("cpu")
WORK = {"sd1": Workload((4, 8, 8), 2, 5), "sd3": Workload((16, 8, 8), 2, 5)}
SHAPE = AttentionShape(2, 2, 8, 12, 5)
KEY = machine_key(CPU, torch.float32)


class SlowedUNet(AttnProcessor2_0):
    """PyTorch's attention in every respect but its class."""


class SlowedJoint(JointAttnProcessor2_0):
    """The same for joint layers."""


@pytest.fixture
def times(home, monkeypatch):
    """Seconds that the clock shows by candidate; xformers' kernel stands for a real one."""
    shown: dict[str, Any] = {SDPA: 1.0, XFORMERS: 0.8}
    asked: list[str] = []

    def fake_measure(shape, device, dtype, offered):
        asked.append(str(shape))
        return {name: shown[name] for name in offered}

    offered = {
        SDPA: Candidate(AttnProcessor2_0, JointAttnProcessor2_0),
        XFORMERS: Candidate(SlowedUNet, SlowedJoint),
    }
    monkeypatch.setattr(attention_setup, "candidates", lambda device: dict(offered))
    monkeypatch.setattr(attention_setup, "unusable", lambda *_: "")
    monkeypatch.setattr(attention_setup, "measure", fake_measure)
    # a layer that has such a processor may be given another
    plain = (*attention_setup.PLAIN, SlowedUNet, SlowedJoint)
    monkeypatch.setattr(attention_setup, "PLAIN", plain)
    monkeypatch.setattr(attention_setup, "JOINT", (*attention_setup.JOINT, SlowedJoint))
    shown["asked"] = asked
    return shown


def processors(network) -> set[str]:
    layers = [m for m in network.modules() if isinstance(m, Attention)]
    return {type(layer.processor).__name__ for layer in layers}


def test_shapes_are_those_of_the_real_calls():
    network, _, _ = lora_networks.build("sd3")
    found = attention_shapes(network, (16, 8, 8), 2, 5)
    assert found == {
        "transformer_blocks.0.attn": AttentionShape(2, 2, 8, 21, 21, joint=True),
        "transformer_blocks.0.attn2": AttentionShape(2, 2, 8, 16, 16),
        "transformer_blocks.1.attn": AttentionShape(2, 2, 8, 21, 21, joint=True),
    }
    network, _, _ = lora_networks.build("sdxl")
    shapes = attention_shapes(network, (4, 8, 8), 3, 5)
    layers = [name for name, m in network.named_modules() if isinstance(m, Attention)]
    assert sorted(shapes) == sorted(layers)
    for name, shape in shapes.items():
        keys = 16 if name.endswith("attn1") else 5
        assert (shape.batch, shape.tokens, shape.keys) == (3, 16, keys)


@pytest.mark.parametrize("shape", [SHAPE, AttentionShape(2, 2, 8, 12, 12, joint=True)])
def test_a_trial_computes_attention_and_its_gradients(shape):
    found = Trial(shape, CPU, torch.float32).call(attention_timing.candidates(CPU)[SDPA])
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.tokens, shape.keys, shape.keys, shape.tokens)
    q, k, v, gradient = (torch.randn(2, n, 16, generator=generator) for n in sizes)
    leaves = [value.requires_grad_() for value in (q, k, v)]
    split = [value.view(2, -1, 2, 8).transpose(1, 2) for value in leaves]
    weights = (split[0] @ split[1].transpose(-1, -2) * 8**-0.5).softmax(-1)
    output = (weights @ split[2]).transpose(1, 2).reshape(2, shape.tokens, 16)
    expected = [output.detach(), *torch.autograd.grad(output, leaves, gradient)]
    assert difference(found, expected) < 1e-5


def test_what_fails_or_errs_is_not_timed(monkeypatch):
    class Wrong(AttnProcessor2_0):
        def __call__(self, *arguments, **named):
            return super().__call__(*arguments, **named) * 1.01

    class Broken(AttnProcessor2_0):
        def __call__(self, *arguments, **named):
            raise torch.OutOfMemoryError("out of memory")

    class NotANumber(AttnProcessor2_0):
        def __call__(self, *arguments, **named):
            return super().__call__(*arguments, **named) * float("nan")

    clock = iter(range(1000))
    monkeypatch.setattr(attention_timing, "time_calls", lambda work, device: next(clock))
    kinds = {SDPA: AttnProcessor2_0, "wrong": Wrong, "broken": Broken, "nan": NotANumber}
    offered = {name: Candidate(kind, kind) for name, kind in kinds.items()}
    assert measure(SHAPE, CPU, torch.float32, offered) == {SDPA: 0.0}
    offered["right"] = Candidate(SlowedUNet, SlowedJoint)
    # the two take turns: 0 2 4 .. and 1 3 5 ..
    assert measure(SHAPE, CPU, torch.float32, offered) == {SDPA: 6, "right": 7}


def test_a_kernel_has_to_win_by_a_clear_margin():
    assert fastest({SDPA: 1.0, XFORMERS: 0.98}) == SDPA
    assert fastest({SDPA: 1.0, XFORMERS: 0.96}) == XFORMERS
    assert fastest({SDPA: 1.0, XFORMERS: 0.96, "flash": 0.9}) == "flash"


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_the_fastest_is_chosen_and_remembered(name, times, home):
    network, _, _ = lora_networks.build(name)
    before = lora_networks.run(network, name)
    said = use_attention(network, "auto", WORK[name])
    assert said == "xformers (0.80 of SDPA's time, measured)"
    assert processors(network) == {"SlowedJoint" if name == "sd3" else "SlowedUNet"}
    assert torch.equal(lora_networks.run(network, name), before)
    count = len(times["asked"])
    assert count == len(set(times["asked"])) == (4 if name == "sd1" else 2)
    times[XFORMERS] = 5.0  # not looked at again
    assert use_attention(network, "auto", WORK[name]).endswith("remembered)")
    assert len(times["asked"]) == count
    more = Workload(WORK[name].latent, 4, 5)  # another shape
    said = use_attention(network, "auto", more)
    assert said == "PyTorch SDPA (nothing was clearly faster, measured)"
    assert processors(network) == {"JointAttnProcessor2_0" if name == "sd3" else "AttnProcessor2_0"}


def test_each_shape_has_its_own_kernel_and_ratios_are_of_all_layers(times, home):
    network, _, _ = lora_networks.build("sd1")
    shapes = attention_shapes(network, (4, 8, 8), 2, 5)
    cross = sorted(str(s) for s in set(shapes.values()) if s.keys == 5)
    table = {
        s: {SDPA: 1.0, XFORMERS: 3.0 if s in cross else 0.5} for s in map(str, shapes.values())
    }
    home.mkdir()
    (home / "attention.json").write_text(json.dumps({"version": 1, "measured": {KEY: table}}))
    half = len(shapes) // 2
    assert use_attention(network, "auto", WORK["sd1"]) == (
        f"xformers in {half} layers, PyTorch SDPA in {half} layers "
        "(0.75 of SDPA's time, remembered)"
    )
    assert times["asked"] == []


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"version": 2, "measured": {}}', '{"version": 1, "measured": {"x": {"y": 3}}}',
     '{"version": 1, "measured": {"x": {"y": {"sdpa": "fast"}}}}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_is_set_aside(content, times, home):
    home.mkdir()
    (home / "attention.json").write_text(content)
    network, _, _ = lora_networks.build("sd1")
    said: list[str] = []
    assert "measured" in use_attention(network, "auto", WORK["sd1"], None, said.append)
    assert len(said) == 1 and "damaged" in said[0] and "attention.damaged.json" in said[0]
    assert (home / "attention.damaged.json").read_text() == content
    assert "remembered" in use_attention(network, "auto", WORK["sd1"], None, said.append)


def test_a_data_folder_that_cannot_be_written_costs_measuring_again(times, home):
    home.write_text("a file, not a folder")
    network, _, _ = lora_networks.build("sd1")
    said: list[str] = []
    for _ in range(2):
        assert "measured" in use_attention(network, "auto", WORK["sd1"], None, said.append)
    assert any("cannot be kept" in text for text in said)


def test_a_resume_keeps_what_the_run_began_with(times, files, tmp_path, monkeypatch):
    run = new_run(tmp_path / "run", files["sd1"])
    said: list[str] = []
    open_session(run, said.append)
    assert "Attention: xformers (0.80 of SDPA's time, measured)" in said
    times[XFORMERS] = 2.0
    other = new_run(tmp_path / "other", files["sd1"], resolution="64x64")
    said.clear()
    open_session(other, said.append)
    assert "Attention: PyTorch SDPA (nothing was clearly faster, measured)" in said
    monkeypatch.setenv("DPDMD_HOME", str(tmp_path / "elsewhere"))
    said.clear()
    network = open_session(run, said.append).checkpoint.network
    assert "Attention: xformers (as this run began)" in said
    assert processors(network) == {"SlowedUNet"}
    note = run.read_json("attention.json")
    run.write_json("attention.json", note | {"machine": "another card"})
    said.clear()
    open_session(run, said.append)
    assert any("chosen anew" in text for text in said)
    assert any("nothing was clearly faster" in text for text in said)


def test_without_another_kernel_nothing_is_measured(home, monkeypatch):
    def never(*_):
        raise AssertionError("there is nothing to compare")

    monkeypatch.setattr(attention_setup, "measure", never)
    forget_probes()
    network, _, _ = lora_networks.build("sd1")
    said = use_attention(network, "auto", WORK["sd1"])
    assert said.startswith("PyTorch SDPA (xformers ") and not (home / "attention.json").exists()
    assert use_attention(network, "sdpa", WORK["sd1"]) == "PyTorch SDPA (as chosen)"


def test_orders_of_pytorchs_kernels_give_its_result(monkeypatch):
    """The processors that CUDA devices are offered; on a CPU their order changes nothing."""
    offered = attention_timing.candidates(torch.device("cuda"))
    assert list(offered) == [
        SDPA, XFORMERS, "sdpa, flash first", "sdpa, efficient first", "sdpa, cudnn first",
    ]  # fmt: skip
    assert isinstance(offered[XFORMERS].unet(), XFormersAttnProcessor)
    assert isinstance(offered[XFORMERS].joint(), XFormersJointAttnProcessor)
    for shape in (SHAPE, AttentionShape(1, 2, 8, 9, 9, joint=True)):
        trial = Trial(shape, CPU, torch.float32)
        expected = trial.call(offered[SDPA])
        for name in list(offered)[2:]:
            assert difference(trial.call(offered[name]), expected) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [AttentionShape(2, 10, 64, 1024, 1024), AttentionShape(2, 8, 40, 1024, 77),
     AttentionShape(1, 24, 64, 1357, 1357, joint=True)],
)  # fmt: skip
def test_kernels_of_a_gpu_agree(shape, dtype):
    device = torch.device("cuda")
    trial, offered = Trial(shape, device, dtype), attention_timing.candidates(device)
    expected = trial.call(offered[SDPA])
    for name, candidate in offered.items():
        if not attention_timing.unusable(name, device, dtype, shape.width):
            assert difference(trial.call(candidate), expected) < 0.06, name

"""AdamW of the adapters: whole steps or none, exact on resume, wherever the moments wait."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from count_memory import moment_bytes
from dpdmd_studio.core.errors import RunError, SettingsError
from dpdmd_studio.trainer.training import optimizers
from dpdmd_studio.trainer.training.optimizers import AdapterOptimizer
from tiny_runs import distil, final_state, new_run
from torch import nn

SHAPES = ((80, 64), (7,), (3, 20, 100))  # two are large enough for 8 bit
NAMES = ["a", "b", "c"]
has_8bit = importlib.util.find_spec("bitsandbytes") is not None
KINDS = [
    "adamw",
    pytest.param("adamw8bit", marks=pytest.mark.skipif(not has_8bit, reason="no bitsandbytes")),
]


def fresh() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def take_steps(optimizer: AdapterOptimizer, parameters, steps) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.prepare()
        optimizer.step(1e-2, torch.tensor(True))


def values(parameters) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def test_steps_are_those_of_adamw():
    ours, theirs = fresh(), fresh()
    take_steps(AdapterOptimizer(ours), ours, range(5))
    plain = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0, foreach=False)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for parameter in theirs:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        plain.step()
    torch.testing.assert_close(values(ours), values(theirs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_that_wait_elsewhere_change_nothing(kind):
    here, there, later = fresh(), fresh(), fresh()
    take_steps(AdapterOptimizer(here, kind), here, range(6))
    take_steps(AdapterOptimizer(there, kind, offload=True), there, range(6))
    optimizer = AdapterOptimizer(later, kind)
    take_steps(optimizer, later, range(3))
    optimizer.offload()  # as a run does amid training
    take_steps(optimizer, later, range(3, 6))
    assert torch.equal(here[0], there[0]) and torch.equal(here[2], later[2])
    for one, other, third in zip(here, there, later, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_state_goes_on_bit_for_bit(kind, offload):
    straight = fresh()
    take_steps(AdapterOptimizer(straight, kind), straight, range(8))
    first = fresh()
    before = AdapterOptimizer(first, kind, offload=offload)
    take_steps(before, first, range(4))
    saved = before.tensors(NAMES)
    second = [nn.Parameter(value) for value in values(first)]
    after = AdapterOptimizer(second, kind, offload=not offload)
    after.load(NAMES, saved)
    take_steps(after, second, range(4, 8))
    for one, other in zip(straight, second, strict=True):
        assert torch.equal(one, other)
    again = after.tensors(NAMES)
    assert again.keys() == saved.keys()
    assert not torch.equal(again["a/" + _first_moment(kind)], saved["a/" + _first_moment(kind)])


def _first_moment(kind: str) -> str:
    return "exp_avg" if kind == "adamw" else "state1"


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_the_moments_are_what_they_are(kind):
    optimizer = AdapterOptimizer(fresh(), kind)
    found = sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.numel() > 1 and name not in ("qmap1", "qmap2")
    )
    counted = moment_bytes([p.numel() for p in fresh()], kind)
    assert counted == found
    assert kind == "adamw" or counted < 0.27 * moment_bytes([p.numel() for p in fresh()], "adamw")


def test_a_gradient_that_is_not_finite_changes_nothing():
    parameters = fresh()
    optimizer = AdapterOptimizer(parameters)
    take_steps(optimizer, parameters, range(2))
    before, moments = values(parameters), optimizer.tensors(NAMES)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, torch.nan)
    assert optimizer.checks_itself
    optimizer.prepare()
    optimizer.step(1e-2, torch.tensor(False))
    for one, other in zip(before, values(parameters), strict=True):
        assert torch.equal(one, other)
    for name, value in optimizer.tensors(NAMES).items():
        assert torch.equal(value, moments[name]), name
    assert float(moments["a/step"]) == 2


def test_memory_that_runs_out_before_a_step_leaves_everything(monkeypatch):
    parameters = fresh()
    optimizer = AdapterOptimizer(parameters, offload=True)
    take_steps(optimizer, parameters, range(2))
    before, moments, copied = values(parameters), optimizer.tensors(NAMES), []
    original = torch.Tensor.to

    def to(self, *arguments, **named):
        if named.get("copy"):
            copied.append(self)
            if len(copied) == 4:
                raise torch.OutOfMemoryError("out of memory")
        return original(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to)
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.prepare()
    assert len(copied) == 4
    for name, value in optimizer.tensors(NAMES).items():
        assert torch.equal(value, moments[name])
    assert torch.equal(before[0], parameters[0])
    take_steps(optimizer, parameters, range(2, 4))
    straight = fresh()
    take_steps(AdapterOptimizer(straight), straight, range(4))
    assert torch.equal(straight[2], parameters[2])


def test_a_step_makes_no_copy_of_the_adapter():
    from dpdmd_studio.trainer.memory.live_bytes import LiveBytes

    parameters = [nn.Parameter(torch.zeros(1000, 100)) for _ in range(5)]
    optimizer = AdapterOptimizer(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    there = [*parameters, *(p.grad for p in parameters)]
    there += [v for state in optimizer.state.values() for v in state.values()]
    with LiveBytes(there) as counted:
        start = counted.peak
        optimizer.step(1e-2, torch.tensor(True))
    assert counted.peak - start < 1000


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(SettingsError, match=r"install\.py --with-8bit"):
        optimizers.check_optimizer("adamw8bit", torch.device("cpu"))


def test_a_run_with_it_is_refused_before_anything_happens(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(SettingsError, match=r"install\.py --with-8bit"):
        new_run(tmp_path, files["sd1"], optimizer="adamw8bit")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not has_8bit, reason="no bitsandbytes")
def test_a_run_in_8_bit_resumes_exactly_and_not_under_the_other(files, tmp_path, home):
    settings = {"optimizer": "adamw8bit", "student_rank": 32, "fake_rank": 32}
    settings |= {"save_every": 1, "steps": 3}
    whole = new_run(tmp_path / "a", files["sd3"], **settings)
    distil(whole)
    parts = new_run(tmp_path / "b", files["sd3"], **settings)

    def stop(progress) -> None:
        if progress.step == 2:
            (parts.path / "stop").touch()

    assert distil(parts, stop).step == 2
    assert distil(parts).finished
    ours, theirs = final_state(whole), final_state(parts)
    assert any(value.dtype == torch.uint8 for value in ours.values())
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(theirs[key], value), key
    facts = parts.settings()
    facts["config"]["optimizer"] = "adamw"
    parts.write_json("settings.json", facts)
    with pytest.raises(RunError, match="other settings"):
        distil(parts)

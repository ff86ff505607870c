"""Less memory, same gradients: micro-batches, and the fallbacks when memory runs out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from dpdmd_studio.core.errors import RunError
from dpdmd_studio.core.files.tensor_file import read_header
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.method import ablations
from dpdmd_studio.trainer.model.network import NetworkCall
from dpdmd_studio.trainer.training import gradients
from tiny_runs import distil, final_state, heard, metrics_of, new_run

FIRST_FALLBACKS = ("gradient_checkpointing", "micro_batch_size")
SETTINGS = {"batch_size": 2, "num_steps": 2, "teacher_steps": 4, "steps": 2}


@pytest.fixture(scope="module")
def plain(files, tmp_path_factory):
    """A run of SETTINGS that had memory enough."""
    run = new_run(tmp_path_factory.mktemp("plain"), files["sd1"], **SETTINGS)
    distil(run)
    return run


def limited(monkeypatch, fits) -> list[int]:
    """The network runs out of memory in calls with gradients unless `fits(call, pictures)`."""
    refused: list[int] = []
    original = NetworkCall.__call__

    def call(self, x_t, timesteps, conditioning):
        if torch.is_grad_enabled() and not fits(self, len(x_t)):
            refused.append(len(x_t))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, x_t, timesteps, conditioning)

    monkeypatch.setattr(NetworkCall, "__call__", call)
    return refused


def assert_same_states(one, other) -> None:
    ours, theirs = final_state(one), final_state(other)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-2, atol=1e-5)


def in_float64(session, monkeypatch) -> None:
    """Network, adapters and what goes through them in float64."""

    def call(self, x_t, timesteps, conditioning):
        steps = timesteps.expand(len(x_t))
        context = conditioning.context.double()
        return self.network(x_t.double(), steps, context, return_dict=False)[0]

    session.checkpoint.network.double()
    monkeypatch.setattr(NetworkCall, "__call__", call)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("objective", ["dp_dmd", "no_detach"])
def test_parts_of_a_batch_give_its_gradients(size, objective, files, tmp_path, monkeypatch):
    """To rounding, which float32 lets grow to 1e-3 in layers of small gradients."""
    settings = SETTINGS | {"batch_size": 3, "objective": objective}
    run = new_run(tmp_path, files["sd1"], **settings)
    session = open_session(run)
    in_float64(session, monkeypatch)
    trainer = session.trainer
    for parameter in trainer.roles.parameters("student"):  # both roles away from zero
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    found = {}
    for parts in (0, size):
        trainer.settings.config = replace(trainer.config, micro_batch_size=parts)
        batch = trainer.batches.batch("student", 1)
        _, samples = trainer.gradients.student(batch, trainer.batches.generator("s", 1))
        trainer.gradients.fake(samples, trainer.batches.generator("f", 1))
        added = []
        for role in ("student", "fake"):
            for parameter in trainer.roles.parameters(role):
                added.append(parameter.grad.clone())
                parameter.grad = None
        drawn = trainer.gradients.samples(batch, trainer.batches.generator("d", 1))
        found[parts] = (added, samples.x0, drawn.x0)
    largest = max(float(gradient.norm()) for gradient in found[0][0])
    assert largest > 1e-3
    for whole, split in zip(found[0][0], found[size][0], strict=True):
        assert whole.dtype == torch.float64
        # some gradients vanish but for rounding: a key's shift leaves the softmax as it is
        assert (split - whole).norm() <= 1e-10 * whole.norm() + 1e-14 * largest
    torch.testing.assert_close(found[size][1:], found[0][1:], rtol=1e-10, atol=1e-10)


def test_a_run_takes_fallbacks_and_learns_the_same(plain, files, tmp_path, monkeypatch):
    limited(monkeypatch, lambda call, n: call.network.is_gradient_checkpointing and n == 1)
    run = new_run(tmp_path, files["sd1"], **SETTINGS)
    with heard() as said:
        outcome = distil(run)
    assert outcome.step == 2 and outcome.finished
    downs = [text for text in said if "ran out of memory in update 1" in text]
    assert ["--micro-batch-size" in downs[0], "--gradient-checkpointing" in downs[1]] == [True] * 2
    assert len(downs) == 2
    assert run.read_json("memory.json")["since"] == dict.fromkeys(FIRST_FALLBACKS, 1)
    assert run.read_json("memory.json")["micro_batch_size"] == 1
    # Adam turns rounding of a gradient that is zero into steps, so losses are compared
    ours, theirs = metrics_of(run), metrics_of(plain)
    assert [line["step"] for line in ours] == [1, 2]
    for line, other in zip(ours, theirs, strict=True):
        for name in ("diversity_loss", "matching_gradient", "fake_loss"):
            assert line[name] == pytest.approx(other[name], rel=1e-2)


def test_memory_that_runs_out_amid_an_update_loses_nothing(files, tmp_path, monkeypatch):
    one_by_one = SETTINGS | {"micro_batch_size": 1}
    plain = new_run(tmp_path / "plain", files["sd1"], **one_by_one)
    distil(plain)
    calls = {"fake": 0}
    original = gradients.fake_update

    def fake_update(network, x0, draws):
        calls["fake"] += 1
        metrics = original(network, x0, draws)  # gradients are there already
        if calls["fake"] == 4:
            raise torch.OutOfMemoryError("out of memory")
        return metrics

    monkeypatch.setattr(gradients, "fake_update", fake_update)
    run = new_run(tmp_path / "run", files["sd1"], **one_by_one)
    distil(run)
    assert calls["fake"] == 2 * 2 * 2 + 2  # both parts of the update that ran out, again
    assert_same_states(plain, run)


def test_the_last_fallback_changes_the_objective_and_says_so(files, tmp_path, monkeypatch):
    graphs = {"open": 0}
    original = ablations.all_steps

    def all_steps(*arguments):
        if torch.is_grad_enabled():
            graphs["open"] += 1
            raise torch.OutOfMemoryError("out of memory")
        return original(*arguments)

    monkeypatch.setattr(ablations, "all_steps", all_steps)
    run = new_run(tmp_path, files["sd1"], batch_size=1, steps=1, gradient_steps="all")
    with heard() as said:
        outcome = distil(run)
    assert graphs["open"] == 4  # as set, checkpointed, the moments elsewhere, the base in 8 bit
    assert any("changes what is learned" in text for text in said)
    assert open_session(run).config.gradient_steps == "random"
    metadata = read_header(outcome.lora).metadata
    settings = json.loads(metadata["dpdmd.settings"])
    assert settings["gradient_steps"] == "random" and settings["gradient_checkpointing"] is True
    description = metadata["modelspec.description"]
    assert settings["base_weights"] == "int8"
    changes = "base_weights int8 from update 1 on, gradient_steps random from update 1 on"
    assert description.endswith(f"To save memory: {changes}.")


def test_without_a_fallback_left_the_run_stops_with_advice(files, tmp_path, monkeypatch):
    refused = limited(monkeypatch, lambda call, n: False)
    run = new_run(tmp_path, files["sd1"], batch_size=2, steps=1)
    with pytest.raises(RunError, match=r"ran out of memory.*--resolution"):
        distil(run)
    assert refused == [2, 1, 1, 1, 1, 1]
    assert run.metrics() == []


def test_a_resume_begins_with_the_fallbacks_taken(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], batch_size=2)
    taken = {"gradient_checkpointing": True, "micro_batch_size": 1, "gradient_steps": "random"}
    run.write_json("memory.json", taken)
    session = open_session(run)
    assert session.config.micro_batch_size == 1
    assert session.checkpoint.network.is_gradient_checkpointing
    (run.path / "memory.json").write_text(json.dumps(taken | {"micro_batch_size": "one"}))
    with pytest.raises(RunError, match="micro_batch_size is 'one'"):
        open_session(run)

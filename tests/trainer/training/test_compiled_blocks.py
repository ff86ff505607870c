"""Transformer blocks compiled one by one: whole graphs, one for each role, the same gradients.

Except in the last test the graphs are run by PyTorch's own kernels, which needs no C++ compiler and
is exact.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from dpdmd_studio.trainer.method.dp_dmd import denoiser

GPU = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu"
LIMITS = {"recompile_limit": 8, "accumulated_recompile_limit": 256,
          "fail_on_recompile_limit_hit": False}  # fmt: skip


@pytest.fixture
def compiling(monkeypatch):
    """compiling.py as a module; the compiler's graphs and limits are put back."""
    monkeypatch.syspath_prepend(str(GPU.parent))
    monkeypatch.syspath_prepend(str(GPU))
    import compiling

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(LIMITS):
        yield compiling
    torch._dynamo.reset()
    for name in ("compiling", "layouts", "measuring"):
        sys.modules.pop(name, None)


def gradients(name, settings_given, prepare=None):
    """Two updates' gradients of student and fake, and a teacher's prediction after each."""
    from layouts import make_trainer, settings
    from measuring import Options

    options = Options("cpu", "float32", tiny=True, repeats=1)
    trainer = make_trainer(name, options, settings(options, **settings_given))
    generator = torch.Generator().manual_seed(1)
    for role in ("student", "fake"):
        for parameter in trainer.roles.parameters(role):
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    if prepare is not None:
        prepare(trainer.network.call.network)
    found = []
    for step in (1, 2):
        batch = trainer.batches.batch("student", step)
        draws = trainer.batches.generator("levels", step)
        _, samples = trainer.gradients.student(batch, draws)
        trainer.gradients.fake(samples, draws)
        for role in ("student", "fake"):
            parameters = trainer.roles.parameters(role)
            found.append(torch.cat([p.grad.flatten() for p in parameters]))
            for parameter in parameters:
                parameter.grad = None
        network = trainer.network.bound(batch.prompts, len(batch), of=len(batch))
        teacher = denoiser(network, "teacher", trainer.settings.objective().teacher_guidance)
        with torch.no_grad():
            found.append(teacher(batch.noise, trainer.grids.teacher[0]))
    return found


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sd1", {}),
        pytest.param("sd1", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("sd1", {"base_weights": "int8"}, marks=pytest.mark.slow),
        pytest.param("sd3", {}, marks=pytest.mark.slow),
    ],
)
def test_every_role_keeps_its_gradients_without_a_break_in_a_graph(name, given, compiling):
    expected = gradients(name, given)
    found = gradients(name, given, lambda net: compiling.compile_blocks(net, backend="aot_eager"))
    for ours, plain in zip(found, expected, strict=True):
        assert plain.norm() > 0
        assert (ours - plain).norm() <= 1e-5 * plain.norm()
    counted = compiling.counted()
    assert counted["graphs"] > 0
    assert counted["graph_breaks"] == 0


@pytest.mark.slow
def test_compiled_by_a_compiler_every_role_keeps_its_gradients(compiling):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    expected = gradients("sd1", {})
    found = gradients("sd1", {}, compiling.compile_blocks)
    for ours, plain in zip(found, expected, strict=True):
        assert (ours - plain).norm() <= 1e-4 * plain.norm()

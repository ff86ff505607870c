"""xformers is used where it gives PyTorch's result, and nowhere else."""

import sys
import types

import lora_networks
import pytest
import torch
import torch.nn.functional as functional
from diffusers.models.attention_processor import Attention
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.core import attention as ours
from dpdmd_studio.core.attention import attention, choose
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.trainer import attention as attention_setup
from dpdmd_studio.trainer.attention import noted_kernels, use_attention

CPU = torch.device("cpu")


class FakeXformers:
    """Stands for `xformers.ops`: computes with PyTorch, counts its calls, fails as told."""

    def __init__(self):
        self.calls = 0
        self.offset = 0.0
        self.failure = None
        self.takes_masks = True
        self.takes_gradients = True

    def memory_efficient_attention(self, q, k, v, attn_bias=None, p=0.0, scale=None, op=None):
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        if attn_bias is not None and not self.takes_masks:
            raise NotImplementedError("no operator takes this bias")
        if attn_bias is not None:
            assert attn_bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
            assert attn_bias.stride(-2) % 8 == 0
        if q.requires_grad and not self.takes_gradients:
            raise NotImplementedError("no backward operator")
        heads_first = q.ndim == 4
        q, k, v = (t.transpose(1, 2) if heads_first else t.unsqueeze(1) for t in (q, k, v))
        result = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=scale)
        result = result.transpose(1, 2) if heads_first else result.squeeze(1)
        return result + self.offset


def forget_probes() -> None:
    ours._backends.clear()
    ours._declined.clear()


@pytest.fixture
def xformers(monkeypatch):
    fake = FakeXformers()
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = fake.memory_efficient_attention
    package.ops = ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr("diffusers.models.attention_processor.xformers", package, raising=False)
    forget_probes()
    yield fake
    forget_probes()


@pytest.fixture
def no_xformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    forget_probes()
    yield
    forget_probes()


def processors(network) -> set[str]:
    layers = [m for m in network.modules() if isinstance(m, Attention)]
    return {type(layer.processor).__name__ for layer in layers}


def inputs(keys=7, width=16):
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 3, 5, width), (2, 3, keys, width), (2, 3, keys, width))
    return [torch.randn(size, generator=generator) for size in sizes]


@pytest.mark.parametrize("kind", ["none", "additive", "boolean", "broadcast"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_both_ways_give_pytorchs_result(xformers, kind, scale):
    q, k, v = inputs()
    mask = {
        "none": None,
        "additive": torch.randn(2, 3, 5, 7),
        "boolean": torch.rand(2, 1, 5, 7) > 0.3,
        "broadcast": torch.randn(1, 1, 1, 7),
    }[kind]
    found = attention(q, k, v, mask, scale)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    torch.testing.assert_close(found, expected)
    assert xformers.calls > 2  # probes, and the call itself


def test_without_xformers_pytorch_is_named_with_the_reason(no_xformers):
    q, k, v = inputs()
    torch.testing.assert_close(attention(q, k, v), functional.scaled_dot_product_attention(q, k, v))
    assert str(choose(CPU, torch.float32)).startswith("PyTorch SDPA (xformers is not usab")


def test_a_backend_is_probed_once(xformers):
    assert str(choose(CPU, torch.float32)) == "xformers (tried and equal to PyTorch)"
    calls = xformers.calls
    choose(CPU, torch.float32)
    assert xformers.calls == calls


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"failure": NotImplementedError("No operator found")}, "no kernel here: No operator"),
        ({"failure": RuntimeError("wrong driver\nmore")}, "no kernel here: wrong driver)"),
        ({"offset": 0.5}, "wrong here by 0.5"),
        ({"offset": float("nan")}, "wrong here by nan"),
    ],
)
def test_kernels_that_fail_or_err_are_not_used(xformers, change, reason):
    vars(xformers).update(change)
    backend = choose(CPU, torch.float32)
    assert backend.function is None
    assert reason in str(backend)
    calls, (q, k, v) = xformers.calls, inputs(width=64)
    attention(q, k, v)
    assert xformers.calls == calls


def test_masks_that_are_declined_fall_back_for_masks_alone(xformers):
    xformers.takes_masks = False
    q, k, v = inputs()
    mask = torch.randn(2, 3, 5, 7)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v, mask), expected)
    calls = xformers.calls
    attention(q, k, v, mask)
    assert xformers.calls == calls
    attention(q, k, v)
    assert xformers.calls == calls + 1


def test_kernels_without_gradients_serve_inference_only(xformers):
    xformers.takes_gradients = False
    q, k, v = inputs()
    attention(q, k, v)
    calls = xformers.calls
    attention(q.requires_grad_(), k, v).sum().backward()
    assert xformers.calls == calls
    assert q.grad is not None


def test_probing_works_under_inference_mode(xformers):
    with torch.inference_mode():
        assert choose(CPU, torch.float32).differentiable


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_a_network_gives_the_same_output_on_either_backend(xformers, name):
    network, _, _ = lora_networks.build(name)
    assert use_attention(network, "sdpa") == "PyTorch SDPA (as chosen)"
    expected = lora_networks.run(network, name)
    assert use_attention(network, "xformers") == "xformers (tried and equal to PyTorch)"
    calls = xformers.calls
    torch.testing.assert_close(lora_networks.run(network, name), expected)
    assert xformers.calls > calls
    use_attention(network, "sdpa")
    assert torch.equal(lora_networks.run(network, name), expected)


def test_a_network_keeps_pytorch_where_xformers_cannot_train(xformers):
    xformers.takes_gradients = False
    network, _, _ = lora_networks.build("sd1")
    assert use_attention(network, "xformers") == "PyTorch SDPA (xformers has no gradients here)"
    calls = xformers.calls
    lora_networks.run(network, "sd1")
    assert xformers.calls == calls


@pytest.fixture
def auto_on_cpu(monkeypatch):
    monkeypatch.setattr(attention_setup, "AUTO_DEVICES", ("cuda", "cpu"))


@pytest.mark.usefixtures("auto_on_cpu")
def test_auto_takes_xformers_where_its_trial_passes(xformers):
    network, _, _ = lora_networks.build("sd1")
    assert use_attention(network) == "xformers (tried and equal to PyTorch)"
    xformers.takes_gradients = False
    forget_probes()
    assert use_attention(network) == "PyTorch SDPA (xformers has no gradients here)"
    assert processors(network) == {"AttnProcessor2_0"}


@pytest.mark.usefixtures("auto_on_cpu")
def test_auto_says_why_it_stays_with_pytorch(no_xformers):
    network, _, _ = lora_networks.build("sd3")
    assert use_attention(network).startswith("PyTorch SDPA (xformers is not usable: ")
    assert processors(network) == {"JointAttnProcessor2_0"}


def test_auto_does_not_try_xformers_off_cuda(xformers):
    network, _, _ = lora_networks.build("sd1")
    assert use_attention(network) == "PyTorch SDPA (auto tries xformers on CUDA alone)"
    assert xformers.calls == 0


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        (["sdpa", "sdpa"], "PyTorch SDPA (as this run began)"),
        (["xformers", "xformers"], "xformers (tried and equal to PyTorch)"),
        (
            ["sdpa, flash first", "xformers"],
            "PyTorch SDPA (auto tries xformers on CUDA alone). This run began with sdpa, flash "
            "first and xformers as an earlier version timed them; kernels are no longer timed, and "
            "the rest of the run is the same up to rounding",
        ),
    ],
)
def test_a_run_that_began_with_timed_kernels_keeps_them_where_it_can(
    xformers, noted, words, tmp_path
):
    run = RunDirectory(tmp_path)
    assert noted_kernels(run) == set()
    layers = {f"layer {i}": name for i, name in enumerate(noted)}
    run.write_json("attention.json", {"machine": "any", "layers": layers})
    network, _, _ = lora_networks.build("sd1")
    assert use_attention(network, "auto", noted_kernels(run)) == words
    assert use_attention(network, "sdpa", noted_kernels(run)) == "PyTorch SDPA (as chosen)"
    (tmp_path / "attention.json").write_text("{damaged")
    assert noted_kernels(run) == set()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "width", "tokens", "keys"),
    [(10, 64, 1024, 1024), (8, 40, 1024, 77), (24, 64, 1357, 1357)],
)
def test_kernels_of_a_gpu_agree(heads, width, tokens, keys, dtype):
    device, generator = torch.device("cuda"), torch.Generator().manual_seed(0)
    if not choose(device, dtype, width).differentiable:
        pytest.skip(str(choose(device, dtype, width)))
    results = []
    for kernel in (attention, functional.scaled_dot_product_attention):
        generator.manual_seed(0)
        q, k, v, gradient = (
            torch.randn(2, heads, n, width, generator=generator).to(device, dtype)
            for n in (tokens, keys, keys, tokens)
        )
        leaves = [value.requires_grad_() for value in (q, k, v)]
        output = kernel(*leaves)
        results.append([output.detach(), *torch.autograd.grad(output, leaves, gradient)])
    for found, expected in zip(*results, strict=True):
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error < 0.06


def test_an_unknown_choice_is_refused():
    with pytest.raises(SettingsError, match="auto, sdpa, xformers"):
        use_attention(torch.nn.Linear(1, 1), "flash")

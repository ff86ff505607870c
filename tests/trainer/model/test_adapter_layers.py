"""Our LoRA layers give what PEFT's give, and keep fewer copies."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from dpdmd_studio.trainer.model.lora_layers import AdaptedConv2d, AdaptedLinear
from dpdmd_studio.trainer.model.roles import AdapterRoles
from peft.tuners import lora
from torch import nn
from torch.profiler import ProfilerActivity, profile

# rounding once where PEFT rounds twice: half a unit in the last place of bfloat16 is 2^-9
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).permute(0, 2, 3, 1))


def adapted(dtype: torch.dtype) -> tuple[Small, AdapterRoles]:
    torch.manual_seed(0)
    network = Small().to(dtype)
    roles = AdapterRoles(network, ["conv", "linear"], student_rank=2, fake_rank=3, seed=0)
    with torch.no_grad():
        for role in ("student", "fake"):
            for parameter in roles.parameters(role):
                parameter.normal_(std=0.5)
    return network, roles


def results(network, roles, role, x, *, autocast=False):
    roles.use(role)
    x = x.clone().requires_grad_(True)
    with torch.autocast("cpu", x.dtype, enabled=autocast):
        out = network(x)
    out.float().square().mean().backward()
    found = [out.detach(), x.grad]
    if role != "teacher":
        found += [p.grad.clone() for p in roles.parameters(role)]
        for parameter in roles.parameters(role):
            parameter.grad = None
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("role", ["teacher", "student", "fake"])
def test_outputs_and_gradients_are_those_of_peft(role, dtype, monkeypatch):
    network, roles = adapted(dtype)
    assert isinstance(network.linear, AdaptedLinear) and isinstance(network.conv, AdaptedConv2d)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    ours = results(network, roles, role, x)
    monkeypatch.setattr(AdaptedLinear, "forward", lora.Linear.forward)
    monkeypatch.setattr(AdaptedConv2d, "forward", lora.Conv2d.forward)
    expected = results(network, roles, role, x, autocast=dtype != torch.float32)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == theirs.dtype
        error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
        assert float(error) < TOLERANCE[dtype]


def test_layers_that_share_an_input_keep_no_copies_of_it(monkeypatch):
    torch.manual_seed(0)
    network = nn.ModuleList([nn.Linear(64, 4) for _ in range(4)]).to(torch.bfloat16)
    roles = AdapterRoles(network, ["0", "1", "2", "3"], student_rank=2, fake_rank=2, seed=0)
    roles.use("student")
    x = torch.randn(512, 64, dtype=torch.bfloat16)

    def peak() -> int:
        low = torch.autocast("cpu", torch.bfloat16)  # PEFT's layers need it
        with LiveBytes([x, *network.parameters()]) as counted, low:
            torch.stack([layer(x) for layer in network]).float().sum().backward()
        return counted.peak

    ours = peak()
    monkeypatch.setattr(AdaptedLinear, "forward", lora.Linear.forward)
    assert peak() - ours > 3 * x.numel() * 2


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_slice_is_one_product_and_not_one_an_image(role):
    """As joint attention hands on its halves; torch copies the weight for every image otherwise."""
    _, roles = adapted(torch.float32)
    roles.use(role)
    (layer,) = (layer for layer in roles._layers.values() if isinstance(layer, AdaptedLinear))
    half = torch.randn(4, 6, 8)[:, :3]
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        found = layer(half)
    torch.testing.assert_close(found, layer(half.contiguous()).detach())
    assert not any(event.key == "aten::bmm" for event in profiled.key_averages())

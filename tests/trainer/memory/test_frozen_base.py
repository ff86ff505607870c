"""A base stored in few bits or on the CPU: the same gradients as its unpacked weights give."""

from __future__ import annotations

import copy

import pytest
import torch
from count_memory import CountedNf4
from diffusers import UNet2DConditionModel
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.memory import weight_formats
from dpdmd_studio.trainer.memory.frozen_layers import FrozenLayer, freeze
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from dpdmd_studio.trainer.memory.offload import HostWeight, OffloadRing
from dpdmd_studio.trainer.memory.packed_base import offload_base, quantise_base, store_base
from dpdmd_studio.trainer.memory.weight_formats import FORMATS, weight_format
from dpdmd_studio.trainer.model.roles import AdapterRoles
from tiny_runs import heard, new_run
from torch import nn

CPU = torch.device("cpu")
TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0|conv1)"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return (
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8,
        )
        .eval()
        .requires_grad_(False)
    )


def with_adapters(network):
    roles = AdapterRoles(network, TARGETS, student_rank=4, fake_rank=8, seed=0)
    generator = torch.Generator().manual_seed(2)
    for role in ("student", "fake"):
        for parameter in roles.parameters(role):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return roles


def call(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 5, 16, generator=generator)
    dtype = network.conv_out.weight.dtype
    return network(x.to(dtype), 500, context.to(dtype)).sample.float()


def gradients(network, roles):
    """Of two student forwards at once, with visits to the other roles, then of the fake score."""
    roles.use("student")
    first, second = call(network), call(network, 3)
    with torch.no_grad():
        roles.use("teacher")
        target = call(network)
        roles.use("fake")
        target = target + call(network)
    roles.use("student")
    ((first - target).square().mean() + second.square().mean()).backward()
    roles.use("fake")
    call(network).square().mean().backward()
    found = {}
    for role in ("student", "fake"):
        for name, parameter in roles.named_parameters(role):
            found[role, name] = parameter.grad.clone()
            parameter.grad = None
    return [first.detach(), second.detach(), target], found


def assert_alike(one, other, tolerance):
    for a, b in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    largest = max(float(value.norm()) for value in one[1].values())
    assert largest > 1e-3 and one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert (other[1][name] - value).norm() <= tolerance * (value.norm() + largest), name


def unpacked_copy(network):
    """The same network with plain layers of the weights that the stored ones unpack to."""
    plain = copy.deepcopy(network)
    for layer in plain.modules():
        if isinstance(layer, FrozenLayer):
            weight = layer.weight
            kind = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
            layer.__class__ = kind
            layer._buffers.clear()
            layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    return plain


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_layers_give_the_gradients_of_their_unpacked_weights(checkpointing, network):
    before = call(network).detach()
    store_base(network, "int8", offload=False, device="cpu")
    changed = (call(network).detach() - before).norm() / before.norm()
    assert 1e-5 < changed < 0.02
    plain = unpacked_copy(network)
    ours, theirs = with_adapters(network), with_adapters(plain)
    if checkpointing:
        network.enable_gradient_checkpointing()
    assert_alike(gradients(plain, theirs), gradients(network, ours), 1e-5)


@pytest.mark.parametrize("kind", ["keep", "int8"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_offloaded_layers_give_the_same_gradients(kind, checkpointing, network):
    resident = copy.deepcopy(network)
    if kind != "keep":
        store_base(resident, kind, offload=False, device="cpu")
    store_base(network, kind, offload=True, device="cpu")
    ours, theirs = with_adapters(network), with_adapters(resident)
    if checkpointing:
        network.enable_gradient_checkpointing()
    for _ in range(3):  # the order of the layers is learned in the first
        assert_alike(gradients(resident, theirs), gradients(network, ours), 1e-6)


def test_bfloat16_agrees_with_the_unpacked_network(network):
    network.bfloat16()
    store_base(network, "int8", offload=True, device="cpu")
    resident = copy.deepcopy(network)
    for layer in resident.modules():
        if isinstance(layer, FrozenLayer):
            assert layer.host is not None
    plain = unpacked_copy(resident)
    ours, theirs = with_adapters(network), with_adapters(plain)
    assert_alike(gradients(plain, theirs), gradients(network, ours), 1e-2)


@pytest.mark.parametrize("kind", ["keep", "int8"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1), "groups": 4},
    ],
)
def test_convolutions_of_every_shape(settings, kind):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, **settings).requires_grad_(False)
    freeze(layer, FORMATS[kind](), CPU)
    plain = nn.Conv2d(8, 12, **settings).requires_grad_(False)
    plain.weight.copy_(layer.weight)
    if plain.bias is not None:
        plain.bias.copy_(layer.bias)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 9, 7).to(memory_format=layout)
        found = []
        for conv in (plain, layer):
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            output = conv(leaf)
            output.sin().sum().backward()
            found += [(output.detach(), leaf.grad)]
        torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_nothing_unpacked_waits_for_the_backward():
    """Eight layers of 64 KiB in int8: the peak holds one unpacked weight, not eight."""
    layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))).requires_grad_(False)
    for layer in layers:
        freeze(layer, FORMATS["int8"](), CPU)
    x = torch.randn(1, 256, requires_grad=True)
    with LiveBytes([x, *layers.parameters(), *layers.buffers()]) as counted:
        layers(x).sum().backward()
    stored = sum(t.numel() * t.element_size() for t in [*layers.parameters(), *layers.buffers()])
    assert counted.peak < stored + 256 * 256 * 4 + 64 * 1024
    assert x.grad is not None and float(x.grad.norm()) > 0


@pytest.mark.parametrize("kind", ["keep", "int8"])
def test_the_device_holds_two_layers_at_most(kind, network):
    store_base(network, kind, offload=True, device="cpu")
    roles = with_adapters(network)
    frozen = [layer for layer in network.modules() if isinstance(layer, FrozenLayer)]
    largest = max(layer.stored_bytes for layer in frozen)
    ring = network.offload_ring
    assert [slot.numel() for slot in ring.slots] == [largest, largest]
    assert not any(layer._buffers or "weight" in layer._parameters for layer in frozen)
    gradients(network, roles)
    on_device = {id(t) for t in [*network.parameters(), *network.buffers()]}
    assert not any(id(layer.host.data) in on_device for layer in frozen)


def test_most_layers_are_there_before_they_are_asked_for(network, monkeypatch):
    store_base(network, "int8", offload=True, device="cpu")
    network.enable_gradient_checkpointing()
    roles = with_adapters(network)
    gradients(network, roles)
    late = {"asked": 0, "late": 0}
    holding = OffloadRing.holding

    def counted(self, weight):
        late["asked"] += 1
        late["late"] += weight not in self._held
        return holding(self, weight)

    monkeypatch.setattr(OffloadRing, "holding", counted)
    gradients(network, roles)
    assert late["asked"] > 300 and late["late"] < 0.1 * late["asked"], late


def test_the_ring_serves_any_order_and_learns_it():
    ring = OffloadRing(CPU)
    parts = [(torch.full((size,), float(size)), torch.arange(size)) for size in (3, 70, 5, 9)]
    weights = [HostWeight.of(part, pinned=False) for part in parts]
    ring.fit(max(weight.data.numel() for weight in weights))
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(4, (200,), generator=generator).tolist() + [0, 1, 2, 3] * 5
    for index in order:
        with ring.holding(weights[index]) as found:
            assert all(torch.equal(a, b) for a, b in zip(found, parts[index], strict=True))
            assert found[0].untyped_storage().data_ptr() in [
                slot.untyped_storage().data_ptr() for slot in ring.slots
            ]
    with ring.holding(weights[0]):
        assert weights[1] in ring._held


def test_only_the_layers_inside_the_blocks_are_stored_and_only_once(network):
    roles = with_adapters(network)
    quantise_base(network, "int8")
    stored = {n for n, module in network.named_modules() if isinstance(module, FrozenLayer)}
    blocks = ("down_blocks", "mid_block", "up_blocks")
    assert stored and all(name.startswith(blocks) for name in stored)
    plain = [
        name
        for name, module in network.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d) and "lora_" not in name
    ]
    assert {name for name in plain if not name.startswith(blocks)} == {
        "conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2",
    }  # fmt: skip
    on_the_path = {name for name in plain if name.startswith(blocks)}
    assert on_the_path and all("shortcut" in n or "samplers" in n for n in on_the_path)
    assert network.conv_out.weight.dtype == torch.float32
    bytes_before = {n: b.clone() for n, b in network.named_buffers()}
    results = gradients(network, roles)
    quantise_base(network, "int8")
    assert all(torch.equal(b, bytes_before[n]) for n, b in network.named_buffers())
    offload_base(network)
    assert_alike(results, gradients(network, roles), 1e-6)
    layers = dict(network.named_modules())
    assert {layers[name].host.layout[0][1] for name in stored} == {torch.int8}
    assert {layers[name].host.layout[0][1] for name in on_the_path} == {torch.float32}
    quantise_base(network, "keep")  # where it lies stays
    assert {layers[name].host.layout[0][1] for name in stored} == {torch.float32}
    again = gradients(network, roles)
    assert float((again[0][0] - results[0][0]).norm() / results[0][0].norm()) < 0.1


def test_the_error_of_an_int8_weight_is_half_a_step_at_most():
    generator = torch.Generator().manual_seed(0)
    weight = (
        torch.randn(16, 8, 3, 3, generator=generator)
        * torch.logspace(-6, 2, 16)[:, None, None, None]
    )
    weight[3] = 0
    found = FORMATS["int8"]()
    parts = found.pack(weight)
    again = found.unpack(parts, weight.shape, torch.float32)
    channel = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert bool(((again - weight).abs() <= 1.001 / 254 * channel).all())
    assert parts[0].element_size() == 1 and parts[1].shape == (16, 1, 1, 1)


@pytest.mark.parametrize("shape", [(64, 96), (32, 16, 3, 3), (33, 7)])
def test_nf4_is_as_exact_as_its_sixteen_levels(shape, request):
    pytest.importorskip("bitsandbytes")
    torch.compiler.set_stance("force_eager")  # it compiles what has no whole blocks, for seconds
    request.addfinalizer(lambda: torch.compiler.set_stance("default"))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    for dtype in (torch.float32, torch.bfloat16):
        found = weight_format("nf4", CPU, dtype)
        parts = found.pack(weight.to(dtype))
        again = found.unpack(parts, weight.shape, dtype)
        assert again.dtype == dtype and again.shape == weight.shape
        assert 0.08 < (again.float() - weight).norm() / weight.norm() < 0.1
        counted = CountedNf4().pack(weight)
        assert [part.shape for part in counted] == [part.shape for part in parts]


@pytest.mark.parametrize("offload", [False, True])
def test_nf4_layers_give_the_gradients_of_their_unpacked_weights(offload, network):
    pytest.importorskip("bitsandbytes")
    store_base(network, "nf4", offload=offload, device="cpu")
    plain = unpacked_copy(network)
    ours, theirs = with_adapters(network), with_adapters(plain)
    network.enable_gradient_checkpointing()
    for _ in range(2):
        assert_alike(gradients(plain, theirs), gradients(network, ours), 1e-5)


def test_missing_and_unfit_formats_are_said(monkeypatch):
    def refuse(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(weight_formats.importlib, "import_module", refuse)
    with pytest.raises(SettingsError, match=r"install.py --with-8bit"):
        weight_format("nf4", CPU, torch.float32)
    with pytest.raises(SettingsError, match="keep, int8, nf4"):
        weight_format("int3", CPU, torch.float32)

    def broken(self, weight):
        raise RuntimeError("not implemented for this device")

    monkeypatch.setattr(weight_formats.Int8, "pack", broken)
    with pytest.raises(SettingsError, match=r"int8 does not work on cpu with float32"):
        weight_format("int8", CPU, torch.float32)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_a_run_learns_the_same_from_an_offloaded_base(family, files, tmp_path):
    short = {"teacher_steps": 4, "fake_updates": 1, "batch_size": 1}
    plain = new_run(tmp_path / "a", files[family], **short)
    moved = new_run(tmp_path / "b", files[family], offload_base=True, **short)
    with heard() as said:
        sessions = [open_session(plain), open_session(moved)]
    assert any("CPU memory, 2 x" in text for text in said)
    assert sessions[1].call.device == CPU
    for _ in range(2):
        one, other = (session.trainer.update() for session in sessions)
        for name in ("diversity_loss", "matching_gradient", "fake_loss", "student_grad_norm"):
            assert one[name] > 0 and one[name] == pytest.approx(other[name], rel=1e-3)


def test_a_run_on_a_packed_base_resumes_only_as_such(files, tmp_path):
    run = new_run(tmp_path, files["sd3"], base_weights="int8")
    session = open_session(run)
    layers = [m for m in session.call.network.modules() if isinstance(m, FrozenLayer)]
    assert layers and all(layer.get_buffer("stored_0").dtype == torch.int8 for layer in layers)
    fingerprints = {session.trainer.fingerprint}
    for name, settings in (("b", {"offload_base": True}), ("c", {})):
        other = new_run(tmp_path / name, files["sd3"], **settings)
        fingerprints.add(open_session(other).trainer.fingerprint)
    assert len(fingerprints) == 2  # where the weights lie does not matter

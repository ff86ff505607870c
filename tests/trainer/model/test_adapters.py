"""Two PEFT adapters on one frozen network: roles, gradients, and the trap of switching them."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from dpdmd_studio.core.errors import LoraError
from dpdmd_studio.trainer.model.roles import AdapterRoles

TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0|conv1)"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
    ).eval()


def call(network):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 5, 16, generator=generator)
    dtype = network.conv_out.weight.dtype
    return network(x.to(dtype), 500, context.to(dtype)).sample


def roles_on(network, seed=0):
    return AdapterRoles(network, TARGETS, student_rank=4, fake_rank=8, seed=seed)


def randomise(roles, role):
    generator = torch.Generator().manual_seed(2)
    for parameter in roles.parameters(role):
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def test_fresh_adapters_leave_every_role_bit_equal_to_the_network(network):
    before = call(network)
    roles = roles_on(network)
    for role in ("teacher", "student", "fake"):
        roles.use(role)
        assert torch.equal(call(network), before)


def test_each_role_sees_its_own_adapter_alone(network):
    before = call(network)
    roles = roles_on(network)
    randomise(roles, "student")
    for role, changed in (("student", True), ("fake", False), ("teacher", False)):
        roles.use(role)
        assert torch.equal(call(network), before) is not changed


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_survive_visits_to_the_other_roles(network, checkpointing):
    roles = roles_on(network)
    randomise(roles, "student")
    if checkpointing:
        network.enable_gradient_checkpointing()

    def gradients(visit):
        roles.use("student")
        output = call(network)
        if visit:
            with torch.no_grad():
                roles.use("teacher")
                call(network)
                roles.use("fake")
                call(network)
            roles.use("student")
        output.square().mean().backward()
        found = [parameter.grad.clone() for parameter in roles.parameters("student")]
        for parameter in roles.parameters("student"):
            parameter.grad = None
        assert all(parameter.grad is None for parameter in roles.parameters("fake"))
        return found

    direct, visited = gradients(False), gradients(True)
    assert all(gradient.abs().sum() > 0 for gradient in direct)
    for a, b in zip(direct, visited, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_casts_of_many_layers_give_what_a_cast_in_each_gives(network, checkpointing, monkeypatch):
    network.bfloat16()
    if checkpointing:
        network.enable_gradient_checkpointing()
    other = copy.deepcopy(network)
    roles = roles_on(network)
    others = roles_on(other)

    def trained(network, roles):
        randomise(roles, "student")
        randomise(roles, "fake")
        found = []
        for _ in range(2):  # the second time with changed weights
            roles.use("student")
            first, second = call(network), call(network)
            with torch.no_grad():
                for role in ("teacher", "fake"):
                    roles.use(role)
                    found.append(call(network))
            roles.use("student")
            (first.float().square().mean() + second.float().mean()).backward()
            for parameter in roles.parameters("student"):
                assert parameter.grad.dtype == torch.float32
                found.append(parameter.grad)
                with torch.no_grad():
                    parameter.sub_(parameter.grad)
                parameter.grad = None
            for parameter in roles.parameters("fake"):
                parameter.data = parameter.data + 0.01
            found.append(first.detach())
        return found

    ours = trained(network, roles)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # which casts in each
    theirs = trained(other, others)
    assert not torch.equal(ours[0], ours[1]) and all(map(torch.equal, ours, theirs))


def test_copies_live_no_longer_than_a_call(network):
    roles = roles_on(network.bfloat16())
    roles.use("student")
    call(network)
    assert not roles._copies._made
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 4, 8, 8, dtype=torch.bfloat16), 500, torch.zeros(2, 5, 16))
    assert not roles._copies._made


def test_the_network_itself_never_gets_gradients(network):
    roles = roles_on(network)
    roles.use("fake")
    call(network).square().mean().backward()
    own = {id(p) for role in ("student", "fake") for p in roles.parameters(role)}
    assert all(p.grad is None for p in network.parameters() if id(p) not in own)
    assert all(p.grad is not None for p in roles.parameters("fake"))


def test_initial_weights_depend_on_the_seed_alone(network):
    first = roles_on(network, seed=3).state("student")
    torch.manual_seed(99)
    other = UNet2DConditionModel.from_config(network.config)
    again = roles_on(other, seed=3).state("student")
    assert all(torch.equal(first[name], again[name]) for name in first)
    different = roles_on(UNet2DConditionModel.from_config(network.config), seed=4).state("student")
    assert any(not torch.equal(first[name], different[name]) for name in first)


def test_state_round_trips_and_foreign_states_are_refused(network):
    roles = roles_on(network)
    randomise(roles, "student")
    saved = roles.state("student")
    roles.use("student")
    before = call(network)
    for parameter in roles.parameters("student"):
        parameter.data.zero_()
    roles.load_state("student", saved)
    assert torch.equal(call(network), before)
    with pytest.raises(LoraError, match="different models"):
        roles.load_state("student", {"x": torch.zeros(1)})


def test_targets_that_match_nothing_are_refused(network):
    with pytest.raises((LoraError, ValueError), match=r"[Tt]arget"):
        AdapterRoles(network, r"no_such_layer", student_rank=4, fake_rank=4, seed=0)

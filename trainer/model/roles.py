"""Teacher, student and fake score as one frozen network with two switched LoRA adapters.

PEFT's own switches (`set_adapter`, `disable_adapters`) also flip `requires_grad`, which autograd
reads at backward time: switching between a forward and its backward silently gives zero gradients.
`AdapterRoles` therefore sets only which adapter is active and leaves every adapter trainable; the
losses are backpropagated with the same role active as in their forward, as gradient checkpointing
needs. Bound to prompts, it is the network that the method sees.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...core.diffusion.guidance import NO_GUIDANCE, Guidance
from ...core.diffusion.schedule import Levels
from ...core.errors import LoraError
from .conditioning import PromptPair
from .lora_layers import LAYERS, Copies
from .loss_scale import LossScale
from .network import NetworkCall, guided


class AdapterRoles:
    """Two LoRA adapters in a frozen network, and the switch between the three roles."""

    def __init__(
        self,
        network: nn.Module,
        targets: Sequence[str] | str,
        *,
        student_rank: int,
        fake_rank: int,
        seed: int,
    ) -> None:
        """Add the adapters; lora_alpha equals the rank, so a LoRA's trained scale is 1.

        Args:
            network: the frozen denoiser; its LoRA layers are added in place.
            targets: PEFT target modules (name endings, or a regular expression).
            student_rank: rank of the student's adapter.
            fake_rank: rank of the fake score's adapter.
            seed: seed of the initial weights (A random, B zero: all roles start equal).
        """
        network.requires_grad_(False)
        for name, rank in (("student", student_rank), ("fake", fake_rank)):
            config = LoraConfig(
                r=rank,
                lora_alpha=rank,
                target_modules=targets if isinstance(targets, str) else list(targets),
                init_lora_weights=True,
            )
            config._register_custom_module(LAYERS)
            with warnings.catch_warnings():  # a second adapter is what we want
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                inject_adapter_in_model(config, network, adapter_name=name)
        self._layers = {
            name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)
        }
        if not self._layers:
            raise LoraError(f"No layer of the network matches the LoRA targets {targets}.")
        self._initialise(seed)
        self._copies = Copies(list(self._layers.values()))
        self.use("teacher")
        # whoever changed the weights since, and however
        network.register_forward_pre_hook(lambda *_: self._copies.drop())
        network.register_forward_hook(lambda *_: self._copies.drop(), always_call=True)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for role in ("student", "fake"):
            for name, parameter in self.named_parameters(role):
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
                if "lora_A" in name:
                    bound = parameter[0].numel() ** -0.5
                    fresh = torch.empty(parameter.shape).uniform_(
                        -bound, bound, generator=generator
                    )
                    parameter.data.copy_(fresh)
                else:
                    parameter.data.zero_()

    def use(self, role: str) -> None:
        """Make `role` the one that the network's next calls (and their backward) act as."""
        self._copies.drop()
        for layer in self._layers.values():
            layer._disable_adapters = role == "teacher"
            if role != "teacher":
                layer._active_adapter = [role]

    def named_parameters(self, role: str) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of one adapter, in a fixed order; names end in lora_A or lora_B."""
        for name, layer in self._layers.items():
            for half in ("lora_A", "lora_B"):
                weight = getattr(layer, half)[role].weight
                yield f"{name}.{half}", weight

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The trainable tensors of one adapter."""
        return [parameter for _, parameter in self.named_parameters(role)]

    def state(self, role: str) -> dict[str, Tensor]:
        """A detached CPU copy of one adapter's tensors."""
        return {n: p.detach().cpu().clone() for n, p in self.named_parameters(role)}

    @torch.no_grad()
    def load_state(self, role: str, state: Mapping[str, Tensor]) -> None:
        """Copy tensors saved by `state` back in; every name must fit."""
        own = dict(self.named_parameters(role))
        if own.keys() != state.keys():
            raise LoraError(
                f"The saved {role} adapter has {len(state)} tensors, this network's has "
                f"{len(own)}: they belong to different models or LoRA settings."
            )
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise LoraError(
                    f"{name} of the saved {role} adapter is {tuple(state[name].shape)}, this "
                    f"network's {tuple(parameter.shape)}: they belong to different models or LoRA "
                    "settings."
                )
            parameter.copy_(state[name])


@dataclass(frozen=True)
class RoleNetwork:
    """A denoiser and its roles.

    Attributes:
        scales: by role, in float16 alone: multiply every loss before its backward; who applies the
            gradients divides it out.
    """

    call: NetworkCall
    roles: AdapterRoles
    scales: Mapping[str, LossScale] = field(default_factory=dict)

    def bound(self, prompts: PromptPair, rows: int, of: int) -> BoundNetwork:
        """The network for `rows` images of a batch `of` so many: their losses count by share."""
        return BoundNetwork(self.call, self.roles, prompts, rows / of, self.scales)


@dataclass(frozen=True)
class BoundNetwork:
    """A denoiser in three roles for the prompts of some rows; see `method.dp_dmd.Network`."""

    call: NetworkCall
    roles: AdapterRoles
    prompts: PromptPair
    loss_weight: float = 1.0
    scales: Mapping[str, LossScale] = field(default_factory=dict)

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        return self.call.prediction

    def __call__(
        self, role: str, x_t: Tensor, level: Levels, guidance: Guidance = NO_GUIDANCE
    ) -> Tensor:
        """The prediction of a role at x_t (B, C, H, W), float32."""
        self.roles.use(role)
        timesteps = level.timesteps.expand(len(x_t))
        return guided(self.call, x_t, timesteps, self.prompts, guidance)

    def backward(self, role: str, loss: Tensor, weight: float = 1.0) -> None:
        """Add the gradients of weight * loss, with the role active as in the forward.

        Gradient checkpointing runs the forward again, and PEFT's layers look at the active adapter.
        """
        self.roles.use(role)
        scale = self.scales[role].factor if role in self.scales else 1.0
        (scale * self.loss_weight * weight * loss).backward()

"""The denoiser in three roles, bound to prompts: the network that the method sees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.diffusion.guidance import NO_GUIDANCE, Guidance
from ...core.diffusion.schedule import Levels
from .conditioning import PromptPair
from .network import NetworkCall, guided
from .roles import AdapterRoles


@dataclass(frozen=True)
class RoleNetwork:
    """A denoiser and its roles.

    Attributes:
        loss_scale: multiplies every loss before its backward, so that float16 gradients do not
            vanish; who applies the gradients divides it out.
    """

    call: NetworkCall
    roles: AdapterRoles
    loss_scale: float = 1.0

    def bound(self, prompts: PromptPair, rows: int, of: int) -> BoundNetwork:
        """The network for `rows` images of a batch `of` so many: their losses count by share."""
        return BoundNetwork(self.call, self.roles, prompts, self.loss_scale * rows / of)


@dataclass(frozen=True)
class BoundNetwork:
    """A denoiser in three roles for the prompts of some rows; see `method.dp_dmd.Network`."""

    call: NetworkCall
    roles: AdapterRoles
    prompts: PromptPair
    loss_weight: float = 1.0

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
        (self.loss_weight * weight * loss).backward()

"""A two-dimensional mixture per class, a small network of it, and exact measures of samples.

Four classes of eight modes each with weights from .05 to .25 (latents of shape (B, 2, 1, 1)).
Guidance sharpens classes, so weak modes are the first that a distilled student can lose.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES, MODES, STD = 4, 8, 0.08
WEIGHTS = (0.25, 0.2, 0.15, 0.12, 0.09, 0.08, 0.06, 0.05)
SPREAD, APART = 2.0, 0.6
WIDTH, FREQUENCIES = 128, 8
NULL = CLASSES
PRESENT = 0.01
"""Share of samples from which a mode counts as present."""


@dataclass(frozen=True)
class Mixture:
    """Centres of the modes, shape (CLASSES, MODES, 2)."""

    centres: Tensor

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Samples of the classes (B,), shape (B, 2)."""
        weights = torch.tensor(WEIGHTS).expand(len(classes), -1)
        modes = torch.multinomial(weights, 1, generator=generator)[:, 0]
        noise = torch.randn(len(classes), 2, generator=generator)
        return self.centres[classes, modes] + STD * noise


def mixture(seed: int = 0) -> Mixture:
    """Centres at random in a square, those of one class at least APART from each other."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.zeros(CLASSES, MODES, 2)
    for number in range(CLASSES):
        found: list[Tensor] = []
        while len(found) < MODES:
            point = SPREAD * (2 * torch.rand(2, generator=generator) - 1)
            if all(float((point - other).norm()) >= APART for other in found):
                found.append(point)
        centres[number] = torch.stack(found)
    return Mixture(centres)


@dataclass(frozen=True)
class ClassLabels:
    """Stands for encoded prompts: one class a sample, shape (B,); NULL is the empty prompt."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches_exactly_with(self, other: ClassLabels) -> bool:
        """Always: there is no padding."""
        return True

    @staticmethod
    def cat(parts) -> ClassLabels:
        """One batch of all."""
        return ClassLabels(torch.cat([part.labels for part in parts]))


class Denoiser(nn.Module):
    """Velocity eps - x0 of states (B, 2, 1, 1): a perceptron of three hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        inputs = 2 + 2 * FREQUENCIES + CLASSES + 1
        layers: list[nn.Module] = []
        for width in (inputs, WIDTH, WIDTH):
            layers += [nn.Linear(width, WIDTH), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, 2))

    def forward(self, x_t: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Velocity, shape (B, 2, 1, 1), at timesteps (B,) of 0 to 1000."""
        angles = timesteps[:, None] / 1000 * torch.pi * 2.0 ** torch.arange(FREQUENCIES) / 2
        one_hot = functional.one_hot(labels, CLASSES + 1).float()
        features = [x_t.flatten(1), angles.sin(), angles.cos(), one_hot]
        return self.layers(torch.cat(features, dim=1))[:, :, None, None]


class Roles:
    """Teacher, student and fake score as three copies of one denoiser, and the switch."""

    prediction, device = "flow", torch.device("cpu")

    def __init__(self, teacher: Denoiser, schedule) -> None:
        self.schedule = schedule
        self.copies = {role: copy.deepcopy(teacher) for role in ("teacher", "student", "fake")}
        self.copies["teacher"].requires_grad_(False)
        self._role = "teacher"

    def use(self, role: str) -> None:
        """Act as `role`."""
        self._role = role

    def __call__(self, x_t: Tensor, timesteps: Tensor, conditioning: ClassLabels) -> Tensor:
        return self.copies[self._role](x_t, timesteps, conditioning.labels)

    def named_parameters(self, role: str):
        """(name, parameter) of one copy."""
        return self.copies[role].named_parameters()

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The trainable tensors of one copy."""
        return list(self.copies[role].parameters())

    def state(self, role: str) -> dict[str, Tensor]:
        """A detached copy of one copy's tensors."""
        return {name: p.detach().clone() for name, p in self.named_parameters(role)}

    def load_state(self, role: str, state: dict[str, Tensor]) -> None:
        """Put tensors saved by `state` back."""
        self.copies[role].load_state_dict(state)


def occupation(world: Mixture, samples: Tensor, classes: Tensor) -> Tensor:
    """Share of each class's samples (B, 2) that is nearest to each mode, shape (CLASSES, MODES)."""
    nearest = (samples[:, None] - world.centres[classes]).norm(dim=-1).argmin(dim=1)
    counts = torch.zeros(CLASSES, MODES)
    counts.index_put_((classes, nearest), torch.ones(len(samples)), accumulate=True)
    return counts / counts.sum(dim=1, keepdim=True)


def measured(world: Mixture, ours: Tensor, theirs: Tensor, classes: Tensor) -> dict[str, float]:
    """What samples (B, 2) are worth beside the teacher's of the same classes and noise.

    modes: modes present, of 8, mean over classes; effective_modes: exp of the occupation's entropy;
    shift: total variation distance to the teacher's occupation; on_mode: share within three
    standard deviations of a mode; distance: energy distance to the teacher's samples.
    """
    own, other = occupation(world, ours, classes), occupation(world, theirs, classes)
    entropy = -(own * own.clamp_min(1e-12).log()).sum(dim=1)
    apart = (ours[:, None] - world.centres[classes]).norm(dim=-1).amin(dim=1)
    distances = [
        energy_distance(ours[classes == number], theirs[classes == number])
        for number in range(CLASSES)
    ]
    return {
        "modes": float((own > PRESENT).float().sum(dim=1).mean()),
        "effective_modes": float(entropy.exp().mean()),
        "shift": float((own - other).abs().sum(dim=1).mean() / 2),
        "on_mode": float((apart < 3 * STD).float().mean()),
        "distance": sum(distances) / CLASSES,
    }


def energy_distance(ours: Tensor, theirs: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| without pairs (i, i): 0 in the mean for one source."""

    def mean_apart(a: Tensor, b: Tensor) -> Tensor:
        apart = torch.cdist(a, b)
        return (apart.sum() - apart.trace()) / (len(a) * (len(a) - 1))

    return float(2 * mean_apart(ours, theirs) - mean_apart(ours, ours) - mean_apart(theirs, theirs))

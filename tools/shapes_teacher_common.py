"""What the stages of `make_shapes_teacher.py` share: mounting, checkpoints, averages, schedule."""

from __future__ import annotations

import json
import logging
import math
import runpy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "mount.py"))
LOG = logging.getLogger("dpdmd_studio.shapes_teacher")
CHECKPOINT_SECONDS = 180.0
WARMUP_UPDATES = 100


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def file_facts(folder: Path) -> dict:
    """Update, seconds and curve of the checkpoint in a training's folder."""
    from safetensors import safe_open

    with safe_open(folder / "state.safetensors", "pt") as file:
        return json.loads(file.metadata()["facts"])


def learning_rate(update: int, cycles: Sequence[int], peak: float) -> float:
    """In each cycle a linear warm-up to `peak`, then a cosine down to zero at the cycle's end."""
    for length in cycles:
        if update < length:
            break
        update -= length
    if update < WARMUP_UPDATES:
        return peak * (update + 1) / WARMUP_UPDATES
    share = (update - WARMUP_UPDATES) / max(1, length - WARMUP_UPDATES)
    return peak * 0.5 * (1.0 + math.cos(math.pi * share))


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for matrices and convolutions, Adam for everything else.

    An orthogonal step moves all directions of a weight alike and needs far fewer updates than Adam
    on these small networks. It is scaled to the root mean square of an Adam step, so that one
    learning rate serves both (Jordan et al. 2024; scale as in arXiv:2502.16982).
    """

    def __init__(self, module: nn.Module, rate: float) -> None:
        weights = dict(module.named_parameters())
        flat = [p for n, p in weights.items() if p.ndim < 2 or "embedding.weight" in n]
        kept = {id(p) for p in flat}
        wide = [p for p in weights.values() if id(p) not in kept]
        groups = [{"params": wide, "wide": True}, {"params": flat, "wide": False}]
        super().__init__(groups, {"lr": rate})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    change = self._wide if group["wide"] else self._flat
                    weight.sub_(change(weight, self.state[weight]), alpha=group["lr"])

    @staticmethod
    def _wide(weight: Tensor, state: dict[str, Tensor]) -> Tensor:
        assert weight.grad is not None
        momentum = state.setdefault("momentum", torch.zeros_like(weight))
        momentum.lerp_(weight.grad, 0.05)
        matrix = weight.grad.lerp(momentum, 0.95).reshape(len(weight), -1)
        return 0.2 * max(matrix.shape) ** 0.5 * orthogonal(matrix).view_as(weight)

    @staticmethod
    def _flat(weight: Tensor, state: dict[str, Tensor]) -> Tensor:
        assert weight.grad is not None
        if not state:
            state.update(count=torch.zeros(()), mean=torch.zeros_like(weight))
            state["square"] = torch.zeros_like(weight)
        count = state["count"].add_(1).item()
        mean = state["mean"].lerp_(weight.grad, 0.1) / (1 - 0.9**count)
        square = state["square"].lerp_(weight.grad.square(), 0.02) / (1 - 0.98**count)
        return mean / (square.sqrt() + 1e-8)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values of about 1, by five Newton-Schulz steps in bf16."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16().contiguous()
    x = x / (x.norm() + 1e-12)
    for _ in range(5):
        gram = x @ x.T
        both = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, both, x, beta=3.4445)
    return (x.T if tall else x).float()


def attend(q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
    """Attention of a few tokens to all others, shapes (N, H, L, D), as plain products.

    torch's kernel for CPUs is made for long sequences: with 30 tokens its backward pass takes a
    third of an update.
    """
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v


@dataclass(frozen=True)
class Ranks:
    """One of several processes that train together, each with a batch of its own."""

    rank: int = 0
    size: int = 1

    def data(self, seed: int, update: int) -> str:
        """The seed of this process's data; the first one's are as if it were alone."""
        return f"{seed}-{update}" if self.rank == 0 else f"{seed}-{update}-rank{self.rank}"

    def average(self, module: nn.Module) -> None:
        """Give the gradients of all processes' mean to each."""
        if self.size == 1:
            return
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.distributed.all_reduce(flat)
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad) / self.size)


class Training:
    """A module, its optimiser and its moving average, kept in one resumable checkpoint.

    Update `n` draws its data from a generator seeded by (seed, n), so a training that is stopped
    and started again goes on with the very images it would have seen.
    """

    ranks = Ranks()

    def __init__(
        self, module: nn.Module, folder: Path, cycles: Sequence[int], peak: float, decay: float
    ) -> None:
        self.module, self.cycles, self.peak, self.decay = module, cycles, peak, decay
        self.path, self.updates = folder, sum(cycles)
        self.average = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.optimizer = Muon(module, peak)
        self.update, self.seconds, self.curve = 0, 0.0, []
        self._load()

    def run(self, loss_of: Callable[[int], Tensor]) -> None:
        """Train until `updates` is reached; `loss_of(update)` gives the loss of one update."""
        started = saved = time.monotonic()
        window: list[float] = []
        before = self.seconds
        while self.update < self.updates:
            window.append(self._step(loss_of))
            now = time.monotonic()
            self.seconds = before + now - started
            if self.update % 50 == 0:
                self.curve.append([self.update, round(sum(window) / len(window), 5)])
                LOG.info("update %d loss %.5f at %.0f s", *self.curve[-1], self.seconds)
                window = []
            due = now - saved > CHECKPOINT_SECONDS or self.update == self.updates
            if due and self.ranks.rank == 0:
                self._save()
                saved = now

    def _step(self, loss_of: Callable[[int], Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.update, self.cycles, self.peak)
        loss = loss_of(self.update)
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss is {loss.item()} at update {self.update}: stopped")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.average(self.module)
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.update += 1
        keep = min(self.decay, self.update / (self.update + 10.0))
        for name, value in self.module.state_dict().items():
            self.average[name].lerp_(value, 1.0 - keep)
        return loss.item()

    def _save(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        facts = {"update": self.update, "seconds": self.seconds, "curve": self.curve}
        partial = self.path / "state.part"
        save_file(tensors, partial, {"facts": json.dumps(facts)})
        partial.replace(self.path / "state.safetensors")

    def _load(self) -> None:
        path = self.path / "state.safetensors"
        if not path.exists():
            return
        facts = file_facts(self.path)
        tensors = load_file(path)
        self.update, self.seconds, self.curve = facts["update"], facts["seconds"], facts["curve"]
        self.module.load_state_dict(part(tensors, "module."))
        for name, value in part(tensors, "average.").items():
            self.average[name].copy_(value)
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in part(tensors, "optimizer.").items():
            index, field = name.split(".", 1)
            states.setdefault(int(index), {})[field] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": states})


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

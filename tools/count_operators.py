"""Counts the operators of one forward of each role, and of a student's backward, on fake tensors.

    python tools/count_operators.py [--families sd1 sdxl sd3] [--dtype bfloat16] [--checkpointing]

The networks have the published models' real layouts, rank 64 and all layers; their tensors are fake
(shape and format, no numbers). There is no autocast, so the count is that of every device. An
operator is a call that PyTorch dispatches and that computes: views and bare allocations are left
out, attention is one, and what works through a list of tensors counts once, whatever launches it
takes. Bytes are those of what operators read and write. A family takes half a minute on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch
from count_memory import CPU, Model, fill, prompts, published_model
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.core.recipe.few_step import family_schedule
from dpdmd_studio.trainer.families import half_of
from dpdmd_studio.trainer.model.network import NetworkCall
from dpdmd_studio.trainer.model.roles import AdapterRoles
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NOTHING_COMPUTED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
                    "detach", "alias", "_unsafe_view", "lift_fresh", "device")  # fmt: skip
CAST = "_to_copy"


class Operators(TorchDispatchMode):
    """Counts what computes, by name, and the bytes that it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Operators in all."""
        return self.counts.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if not func.is_view and name not in NOTHING_COMPUTED:
            touched = {id(t): t for t in tree_leaves((args, kwargs, result)) if torch.is_tensor(t)}
            self.counts[name] += 1
            self.bytes[name] += sum(t.numel() * t.element_size() for t in touched.values())
        return result


class Counted:
    """A model with adapters whose operators can be counted."""

    def __init__(self, model: Model, *, checkpointing: bool = False) -> None:
        network, facts = model.network(), model.family
        layout: dict[str, Any] = dict(network.config)  # type: ignore[arg-type]
        modules = facts.lora.modules(layout, "full")
        with torch.device("meta"):
            self.roles = AdapterRoles(network, modules, student_rank=64, fake_rank=64, seed=0)
        if checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self._fake:
            fill(network, CPU)
            prediction, schedule = facts.sampling.predictions[0], family_schedule(facts)
            self.call = NetworkCall(network, half_of(facts), prediction, schedule, CPU, model.dtype)
            told = prompts(model, layout, CPU)
            self._inputs = torch.empty(1, *model.latent), torch.empty(1), told

    def forward(self, role: str) -> Operators:
        """Those of one call of a role for one image; the teacher's has no graph."""
        return self._run(role)[0]

    def student(self) -> tuple[Operators, Operators]:
        """Those of a student's call for one image, and of its backward."""
        forward, output = self._run("student")
        with self._fake, Operators() as backward:
            output.sum().backward()
        return forward, backward

    def _run(self, role: str) -> tuple[Operators, Tensor]:
        self.roles.use(role)
        graph = torch.set_grad_enabled(role != "teacher")
        with self._fake, graph, Operators() as found:
            output = self.call(*self._inputs)
        return found, output


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Count the operators of a forward.")
    parser.add_argument("--families", nargs="+", default=["sd1", "sdxl", "sd3"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--checkpointing", action="store_true", help="run blocks again in backward")
    parser.add_argument("--names", action="store_true", help="the operators by name, too")
    options = parser.parse_args()
    print("| family | what | operators | casts | GB read and written | GB of casts |")
    print("|---|---|---|---|---|---|")
    for name in options.families:
        model = published_model(name, DistillConfig())
        model = replace(model, dtype=getattr(torch, options.dtype))
        counted = Counted(model, checkpointing=options.checkpointing)
        rows = {"teacher forward": counted.forward("teacher")}
        rows["student forward"], rows["student backward"] = counted.student()
        for what, found in rows.items():
            whole, casts = sum(found.bytes.values()) / 1e9, found.bytes[CAST] / 1e9
            numbers = f"{found.total} | {found.counts[CAST]} | {whole:.1f} | {casts:.1f}"
            print(f"| {name} | {what} | {numbers} |", flush=True)
            if options.names:
                print(dict(found.counts.most_common()))


if __name__ == "__main__":
    main()

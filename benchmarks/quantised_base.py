"""The frozen base in few bits: ours against torchao, bitsandbytes and optimum-quanto, on the CPU.

    python benchmarks/quantised_base.py [--repeats 5] [--threads 2] [--only torchao]

Whatever is not installed is left out. Errors are those of the embedded teachers against float32:
of the teacher's output, and of the gradients that a student update leaves in adapters that are
away from zero, with the same draws. Bytes and time are of a random SD1-layout network of about
100 M parameters: one forward and backward at 32 x 32 latents through the student's adapters,
float32 on all sides, taken in turn; the ratio is that of the least times.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mounting
import torch
from against_three_copies import Batches, make_call
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.trainer.commands.demo import CONFIG
from dpdmd_studio.trainer.commands.distill import create_run
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.memory.packed_base import BLOCKS, offload_base, quantise_base
from dpdmd_studio.trainer.model.roles import AdapterRoles
from dpdmd_studio.trainer.toys.shapes import caption_sample
from torch import Tensor, nn

Change = Callable[[nn.Module], None]
SIDE, RANK = 32, 16
TEACHERS = {"flow": "shapes-sd3", "eps": "shapes-sd1"}
UPDATES = 8
COLUMNS = ("", "layers", "base", "output, flow", "gradients, flow", "output, eps",
           "gradients, eps", "forward + backward")  # fmt: skip


def inner(name: str) -> bool:
    """Whether a layer is one that we would store."""
    return name.startswith(BLOCKS) and "lora_" not in name


def freeze_base(network: nn.Module) -> None:
    """No gradients for what a library has put in the place of the frozen weights."""
    for name, parameter in network.named_parameters():
        if "lora_" not in name:
            parameter.requires_grad_(False)


def torchao(kind: str) -> Change:
    """Weights as tensor subclasses, linear layers only."""

    def change(network: nn.Module) -> None:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

        config = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]()
        quantize_(network, config, lambda m, name: type(m) is nn.Linear and inner(name))
        freeze_base(network)

    return change


def quanto(kind: str) -> Change:
    """Linear layers and convolutions are replaced."""

    def change(network: nn.Module) -> None:
        from optimum.quanto import freeze, qfloat8, qint4, qint8, quantize

        weights = {"int8": qint8, "fp8": qfloat8, "int4": qint4}[kind]
        names = [
            name for name, m in network.named_modules()
            if type(m) in (nn.Linear, nn.Conv2d) and inner(name)
        ]  # fmt: skip
        quantize(network, weights=weights, include=names)
        freeze(network)
        freeze_base(network)

    return change


def bitsandbytes(kind: str) -> Change:
    """Linear layers are replaced; its own backward, its own 8-bit arithmetic."""

    def change(network: nn.Module) -> None:
        import bitsandbytes as bnb

        for name, layer in list(network.named_modules()):
            if type(layer) is not nn.Linear or not inner(name):
                continue
            sizes = (layer.in_features, layer.out_features, layer.bias is not None)
            if kind == "nf4":
                new = bnb.nn.Linear4bit(*sizes, quant_type="nf4", compress_statistics=False)
            else:
                new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            new.load_state_dict(layer.state_dict())
            network.set_submodule(name, new.to("cpu").requires_grad_(False))

    return change


def ours(kind: str, *, offload: bool = False) -> Change:
    """This project's layers."""

    def change(network: nn.Module) -> None:
        quantise_base(network, kind)
        if offload:
            offload_base(network)

    return change


WAYS: dict[str, tuple[str, Change]] = {
    "ours, int8": ("", ours("int8")),
    "ours, fp8": ("", ours("fp8")),
    "ours, nf4": ("bitsandbytes", ours("nf4")),
    "ours, float32, offloaded to the CPU": ("", ours("keep", offload=True)),
    "ours, int8, offloaded to the CPU": ("", ours("int8", offload=True)),
    "torchao, int8 weights": ("torchao", torchao("int8")),
    "torchao, fp8 weights": ("torchao", torchao("fp8")),
    "bitsandbytes, Linear8bitLt": ("bitsandbytes", bitsandbytes("int8")),
    "bitsandbytes, Linear4bit (nf4)": ("bitsandbytes", bitsandbytes("nf4")),
    "optimum-quanto, qint8": ("optimum.quanto", quanto("int8")),
    "optimum-quanto, qfloat8": ("optimum.quanto", quanto("fp8")),
    "optimum-quanto, qint4": ("optimum.quanto", quanto("int4")),
}


def numbers(tensor: Tensor) -> int:
    """Bytes of a tensor, of all its parts if it is made of several."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(numbers(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.untyped_storage().nbytes()


def base_bytes(network: nn.Module) -> int:
    """Bytes of the frozen network on the device."""
    total = 0
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if "lora_" not in name:
            total += numbers(tensor.data)
            state = getattr(tensor, "quant_state", None)
            total += numbers(state.absmax) if state is not None else 0
    return total


def session_of(asset: str, folder: Path):
    """The embedded teacher in a run that is about to begin."""
    settings = {"batch_size": 8, "student_rank": RANK, "fake_rank": RANK, "preview_every": 0}
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(mounting.ROOT / "trainer/assets" / f"{asset}.safetensors")),
        config=DistillConfig.from_dict(CONFIG.to_dict() | settings),
        output=str(folder / "student.safetensors"),
        overwrite=True,
    )
    prompts = caption_sample(held_out=False, count=100, seed=0)
    run = create_run(folder / "run", request, prompts, overwrite=True)
    return open_session(run, lambda text: None)


def randomise(roles: AdapterRoles) -> None:
    """Adapters of the size that a short training leaves."""
    generator = torch.Generator().manual_seed(1)
    for role in ("student", "fake"):
        for name, parameter in roles.named_parameters(role):
            if name.endswith("lora_B"):
                parameter.data = 0.01 * torch.randn(parameter.shape, generator=generator)


def outputs_and_gradients(asset: str, change: Change | None) -> tuple[Tensor, list[Tensor]]:
    """The teacher's outputs at all kinds of levels, and each update's gradients in one vector."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(asset, Path(folder))
    trainer = session.trainer
    randomise(session.roles)
    if change is not None:
        change(session.call.network)
    found, gradients = [], []
    for step in range(1, UPDATES + 1):
        batch = trainer.batches.batch("student", step)
        level = trainer.distiller._training_levels[torch.tensor([step * 999 // UPDATES])]
        session.roles.use("teacher")
        with torch.no_grad():
            x_t = batch.noise * level.broadcast_scales[1]
            found.append(session.call(x_t, level.timesteps.expand(len(x_t)), batch.conditional))
        trainer.distiller.student_update(batch, trainer.batches.generator("levels", step))
        flat = []
        for parameter in session.roles.parameters("student"):
            assert parameter.grad is not None
            flat.append(parameter.grad.flatten())
            parameter.grad = None
        gradients.append(torch.cat(flat))
    return torch.stack(found), gradients


def errors(asset: str, change: Change, exact: tuple[Tensor, list[Tensor]]) -> list[str]:
    """Relative error of the outputs and of the gradients, in words."""
    output, gradients = outputs_and_gradients(asset, change)
    wrong = (output - exact[0]).norm() / exact[0].norm()
    each = [float((a - b).norm() / b.norm()) for a, b in zip(gradients, exact[1], strict=True)]
    return [f"{float(wrong):.2%}", f"{sorted(each)[len(each) // 2]:.1%}"]


class Wide:
    """The random network with adapters, for bytes and time."""

    def __init__(self, change: Change | None) -> None:
        call = make_call()
        modules = call.family.lora_modules(dict(call.network.config), "full")  # type: ignore[arg-type]
        roles = AdapterRoles(call.network, modules, student_rank=RANK, fake_rank=RANK, seed=0)
        if change is not None:
            change(call.network)
        roles.use("student")
        self.bytes = base_bytes(call.network)
        plain = sum(
            inner(name)
            and type(m) in (nn.Linear, nn.Conv2d)
            and not hasattr(m.weight, "__tensor_flatten__")
            for name, m in call.network.named_modules()
        )
        self._call, self.plain, self.times = call, plain, []
        self._batch = Batches(SIDE).batch("student", 1)

    def run(self) -> None:
        """One forward and backward."""
        started = time.perf_counter()
        batch = self._batch
        output = self._call(batch.noise, torch.full((1,), 500.0), batch.conditional)
        output.square().mean().backward()
        self.times.append(time.perf_counter() - started)


def row(name: str, change: Change, exact: dict, repeats: int) -> str:
    """One line of the table; what a library cannot do is said in its place."""
    cells = [name]
    try:
        plain, wide = Wide(None), Wide(change)
        for _ in range(1 + repeats):  # the first warms up
            plain.run()
            wide.run()
        ratio = min(wide.times[1:]) / min(plain.times[1:])
        layers = f"{plain.plain - wide.plain} of {plain.plain}"
        cells += [layers, f"{wide.bytes / plain.bytes:.1%}"]
        del plain, wide
        for teacher, asset in TEACHERS.items():
            cells += errors(asset, change, exact[teacher])
        cells.append(f"{ratio:.2f} x")
    except Exception as error:  # a benchmark of others' code: whatever it raises is the result
        cells.append(f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
    cells += [""] * (len(COLUMNS) - len(cells))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with this in their name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packages = ("torch", "torchao", "bitsandbytes", "optimum-quanto")
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {found[name]}" for name in packages if name in found)
    print(f"CPU, {options.threads} threads, {versions}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    exact = {name: outputs_and_gradients(asset, None) for name, asset in TEACHERS.items()}
    for name, (package, change) in WAYS.items():
        if options.only not in name:
            continue
        if not package or importlib.util.find_spec(package.split(".")[0]):
            print(row(name, change, exact, options.repeats), flush=True)


if __name__ == "__main__":
    main()

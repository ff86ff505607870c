"""Kernels: attention, a profile of an update, compiled blocks, CUDA graphs, layouts in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from compiling import compile_blocks, counted
from dpdmd_studio.trainer.model.conditioning import PromptPair
from dpdmd_studio.trainer.training.loop import Trainer
from layouts import latent_shape, make_trainer, settings
from measuring import Options, Row, Unavailable, release, seconds, synchronise
from one_pass import one_pass, two_passes
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

Cases = dict[str, Callable[[], Row]]
# heads, tokens of the queries, tokens of the keys, width of a head
SHAPES = {
    "sd1, 512, self": (8, 4096, 4096, 40),
    "sd1, 512, cross": (8, 4096, 77, 40),
    "sdxl, 1024, self": (10, 4096, 4096, 64),
    "sdxl, 1024, self, inner": (20, 1024, 1024, 64),
    "sdxl, 1024, cross": (10, 4096, 77, 64),
    "sd3, 1024, joint": (24, 4096 + 333, 4096 + 333, 64),
}
KERNELS: dict[str, SDPBackend | None] = {
    "SDPA as PyTorch chooses": None,
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
XFORMERS = "xformers"


def attention_cases(options: Options) -> Cases:
    """Forward and backward of every kernel at every shape, and whole SDXL updates on two."""

    def measured(shape: tuple[int, ...], kernel: str) -> Row:
        release(options)
        heads, queries, keys, width = shape
        if options.tiny:
            queries, keys = queries // 128, max(keys // 128, 1)
        make = {"device": options.place, "dtype": options.number_format}
        q = torch.randn(2, heads, queries, width, requires_grad=True, **make)
        k, v = (torch.randn(2, heads, keys, width, requires_grad=True, **make) for _ in range(2))
        attend = xformers_attention() if kernel == XFORMERS else sdpa(KERNELS[kernel])

        def work() -> None:
            attend(q, k, v).sum().backward()

        try:
            return seconds(work, options, warm_up=3)
        except (RuntimeError, NotImplementedError) as error:
            raise Unavailable(str(error).splitlines()[0][:120]) from error

    kernels = [*KERNELS, XFORMERS]
    cases = {
        f"{words}, {kernel}": lambda s=shape, k=kernel: measured(s, k)
        for words, shape in SHAPES.items()
        for kernel in kernels
    }
    for choice in ("sdpa", XFORMERS):
        cases[f"sdxl, whole update, {choice}"] = lambda c=choice: whole_update(c, options)
    return cases


def sdpa(backend: SDPBackend | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """PyTorch's attention, restricted to one kernel."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend) if backend is not None else nullcontext():
            return scaled_dot_product_attention(q, k, v)

    return attend


def xformers_attention() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """xformers' attention over (B, heads, tokens, width)."""
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise Unavailable("xformers is not installed") from error

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        turned = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return memory_efficient_attention(*turned).transpose(1, 2)

    return attend


def whole_update(choice: str, options: Options) -> Row:
    """An SDXL update with one kind of attention, as the product sets it."""
    from dpdmd_studio.trainer.attention import use_attention

    release(options)
    if choice == XFORMERS:
        xformers_attention()
    said: list[str] = []
    config = settings(options, gradient_checkpointing=True, attention=choice)

    def prepare(network: nn.Module) -> None:
        said.append(str(use_attention(network, choice)))

    trainer = make_trainer("sdxl", options, config, prepare=prepare)
    if choice == XFORMERS and "xformers" not in said[0].split(" (")[0]:
        raise Unavailable(said[0][:120])
    return seconds(trainer.update, options) | {"said": said[0]}


def profile_cases(options: Options) -> Cases:
    """The share of an update's wall time in which a kernel runs, and what takes the time."""
    return {
        f"{name}, shared roll-outs{', checkpointing' if c else ''}": lambda n=name, c=c: profiled(
            n, options, c
        )
        for name in ("sdxl", "sd3", "sd1")
        for c in (False, True)
    }


def profiled(name: str, options: Options, checkpointing: bool) -> Row:
    """One update under PyTorch's profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    release(options)
    trainer = make_trainer(name, options, settings(options, gradient_checkpointing=checkpointing))
    plain = seconds(trainer.update, options)
    wanted = [ProfilerActivity.CPU]
    wanted += [ProfilerActivity.CUDA] if options.on_cuda else []
    with profile(activities=wanted) as profiler:
        started = time.perf_counter()
        trainer.update()
        synchronise(options)
        wall = time.perf_counter() - started
    kind = DeviceType.CUDA if options.on_cuda else DeviceType.CPU
    found = [event for event in profiler.events() if event.device_type == kind]
    busy = covered((e.time_range.start, e.time_range.end) for e in found) / 1e6
    time_of = "self_device_time_total" if options.on_cuda else "self_cpu_time_total"
    averages = profiler.key_averages()
    whole = sum(getattr(event, time_of) for event in averages) or 1
    top = sorted(averages, key=lambda event: -getattr(event, time_of))[:12]
    return plain | {
        "profiled_seconds": wall,
        "kernel_seconds": busy,
        "kernel_share": busy / wall,
        "kernel_share_of_plain": busy / plain["seconds"],
        "top": [[e.key[:60], getattr(e, time_of) / whole, e.count] for e in top],
    }


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def speed_cases(options: Options) -> Cases:
    """Each trick alone: compiled blocks, CUDA graphs, channels last, three scores in one pass."""
    cases: Cases = {}
    for name in ("sd1", "sdxl", "sd3"):
        cases[f"{name}, as it is"] = lambda n=name: changed(n, options, lambda network: None)
        cases[f"{name}, blocks compiled"] = lambda n=name: compiled(n, options)
        cases[f"{name}, guided teacher call in a CUDA graph"] = lambda n=name: graphed(n, options)
        cases[f"{name}, teacher and fake in one pass"] = lambda n=name: scores(n, options)
        if name != "sd3":
            cases[f"{name}, channels last"] = lambda n=name: changed(n, options, channels_last)
    return cases


def channels_last(network: nn.Module) -> None:
    """Convolutions' weights, and with them what they compute, in the other order."""
    nn.Module.to(network, memory_format=torch.channels_last)


def changed(name: str, options: Options, prepare: Callable[[nn.Module], object]) -> Row:
    """Seconds of an update whose network was changed."""
    release(options)
    trainer = make_trainer(name, options, settings(options), prepare=prepare)
    return seconds(trainer.update, options)


def compiled(name: str, options: Options) -> Row:
    """Seconds with each transformer block compiled, and how far its gradients are from plain."""
    release(options)
    torch._dynamo.reset()
    counters.clear()
    trainer = make_trainer(name, options, settings(options))
    with torch.no_grad():  # adapters that take part in every gradient
        for role in ("student", "fake"):
            for parameter in trainer.roles.parameters(role):
                parameter.add_(torch.randn_like(parameter), alpha=1e-2)
    expected = student_gradient(trainer)
    blocks = compile_blocks(trainer.network.call.network)
    started = time.perf_counter()
    found = student_gradient(trainer)
    trainer.update()
    synchronise(options)
    first = time.perf_counter() - started
    error = float((found - expected).norm() / expected.norm())
    said = {"compiling_update": first, "blocks": blocks, "difference": error, **counted()}
    return seconds(trainer.update, options) | said


def student_gradient(trainer: Trainer) -> Tensor:
    """The student's gradients of its first update, in one row."""
    batch = trainer.batches.batch("student", 1)
    trainer.gradients.student(batch, trainer.batches.generator("student-levels", 1))
    parameters = trainer.roles.parameters("student")
    found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return found


def graphed(name: str, options: Options) -> Row:
    """The guided teacher's call, plain and replayed from a graph."""
    options.needs_cuda("A CUDA graph")
    release(options)
    trainer = make_trainer(name, options, settings(options))
    batch, level = trainer.batches.batch("student", 1), trainer.grids.teacher[0]
    prompts = batch.prompts
    if name == "sdxl":  # made on the CPU at every call otherwise, which a graph refuses
        height, width = (8 * side for side in batch.noise.shape[-2:])
        sized = [f.with_size(height, width) for f in (prompts.conditional, prompts.unconditional)]
        prompts = PromptPair(*sized)
    network = trainer.network.bound(prompts, len(batch), of=len(batch))
    guidance = trainer.settings.objective().teacher_guidance

    @torch.no_grad()
    def call() -> Tensor:
        return network("teacher", batch.noise, level, guidance)

    plain = seconds(call, options, warm_up=3)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    found = seconds(graph.replay, options, warm_up=3)
    error = float((out - expected).norm() / expected.norm())
    return found | {"plain_seconds": plain["seconds"], "difference": error}


def scores(name: str, options: Options) -> Row:
    """Guided teacher and fake score on one noised latent: three rows at once, or two and one."""
    release(options)
    config = settings(options)
    trainer = make_trainer(name, options, config)
    with torch.no_grad():  # a fake score that differs from the teacher
        for parameter in trainer.roles.parameters("fake"):
            parameter.add_(torch.randn_like(parameter), alpha=1e-2)
    batch = trainer.batches.batch("student", 1)
    x_t = torch.randn(latent_shape(name, options, config, None)).to(options.place)
    level = trainer.grids.training[torch.full((len(x_t),), 500)]
    level = level.map(lambda tensor: tensor.to(options.place))
    apart = seconds(lambda: two_passes(trainer, batch.prompts, x_t, level), options)
    together = seconds(lambda: one_pass(trainer, batch.prompts, x_t, level), options)
    two = two_passes(trainer, batch.prompts, x_t, level)
    pairs = zip(two, one_pass(trainer, batch.prompts, x_t, level), strict=True)
    error = max(float((a - b).norm() / a.norm()) for a, b in pairs)
    return together | {"plain_seconds": apart["seconds"], "difference": error}

"""Sampling as core's KSampler does, and the entries in its dropdowns."""

# pyright: reportMissingImports=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .models import Model

Conditioning = list[Any]
Latent = dict[str, Any]


def sampler_object(function: Callable[..., Tensor], options: Mapping[str, Any]) -> Any:
    """A SAMPLER of a function with k-diffusion's call contract."""
    import comfy.samplers

    return comfy.samplers.KSAMPLER(function, dict(options))


def noise_sampler(x: Tensor, seed: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Unit noise from the host's own seeded stream, as its samplers make it."""
    import comfy.k_diffusion.sampling

    return comfy.k_diffusion.sampling.default_noise_sampler(x, seed=seed)


def patcher_of(denoiser: Any) -> Model | None:
    """The MODEL behind the callable that samplers are handed; None if it cannot be found."""
    guider = getattr(denoiser, "inner_model", None)
    return getattr(guider, "model_patcher", None)


def guidance_of(denoiser: Any) -> float | None:
    """The CFG that a sampler is called with; None where its guider has none."""
    found = getattr(getattr(denoiser, "inner_model", None), "cfg", None)
    return float(found) if isinstance(found, (int, float)) else None


def on_console(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The sampler's function with a bar on the console, as core's own samplers have."""

    def shown(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        import comfy.k_diffusion.sampling

        with comfy.k_diffusion.sampling.trange(len(sigmas) - 1, disable=disable) as bar:

            def called(step: dict[str, Any]) -> None:
                bar.update()
                if callback is not None:
                    callback(step)

            return function(model, x, sigmas, extra_args, called, disable, **options)

    return shown


def euler(model: Any, x: Tensor, sigmas: Tensor, *rest: Any) -> Tensor:
    """Core's Euler sampler, which takes levels in either direction."""
    import comfy.k_diffusion.sampling

    return comfy.k_diffusion.sampling.sample_euler(model, x, sigmas, *rest)


def is_flow(denoiser: Any) -> bool:
    """Whether the model behind a sampler's callable is a flow."""
    model = patcher_of(denoiser)
    if model is None:
        return False
    kinds = type(model.get_model_object("model_sampling")).__mro__
    return any(kind.__name__ == "CONST" for kind in kinds)


@dataclass(frozen=True)
class Trajectory:
    """A SAMPLER, its noise levels, shape (n + 1,), and its guidance; 1 is off."""

    sampler: Any
    sigmas: Tensor
    guidance_scale: float

    @property
    def num_steps(self) -> int:
        """Steps of the sampler."""
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class Subject:
    """What an image is sampled from besides its model.

    `negative` is None where guidance is off; then it is not evaluated.
    """

    positive: Conditioning
    negative: Conditioning | None
    latent: Latent
    seed: int = 0


def sample(
    model: Model, trajectory: Trajectory, subject: Subject, *, done: int = 0, total: int = 0
) -> Latent:
    """Sample as core's KSampler does: same noise for a seed, masks, previews, interrupts.

    Args:
        done: steps that the progress bar shows as done before these.
        total: steps of the whole progress bar; 0 for these alone.
    """
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import comfy.utils

    latent = subject.latent
    start = _fitting_latent(model, latent)
    noise = comfy.sample.prepare_noise(start, subject.seed, latent.get("batch_index"))
    guider = comfy.samplers.CFGGuider(model)
    if subject.negative is None:
        guider.inner_set_conds({"positive": subject.positive})
    else:
        guider.set_conds(subject.positive, subject.negative)
    guider.set_cfg(trajectory.guidance_scale)
    samples = guider.sample(
        noise,
        start,
        trajectory.sampler,
        trajectory.sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=_preview_callback(model, done, total or trajectory.num_steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=subject.seed,
    )
    samples = samples.to(comfy.model_management.intermediate_device())
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}
    return kept | {"samples": samples}


def _preview_callback(model: Model, done: int, total: int) -> Callable[..., None]:
    """The host's progress and preview of steps that are a part of more."""
    import latent_preview

    show = latent_preview.prepare_callback(model, total)
    return lambda step, x0, x, _: show(done + step, x0, x, total)


def core_trajectory(model: Model, steps: int, guidance_scale: float) -> Trajectory:
    """What core's KSampler does with euler and simple, for a MODEL of any family."""
    import comfy.samplers

    schedule = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(schedule, "simple", steps)
    return Trajectory(comfy.samplers.sampler_object("euler"), sigmas, guidance_scale)


def _fitting_latent(model: Model, latent: Latent) -> Tensor:
    """The latent with the channels of the model, if it is an empty one of another kind."""
    import comfy.sample

    fix = comfy.sample.fix_empty_latent_channels
    ratios = (latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal"))
    more = len(inspect.signature(fix).parameters) - 2
    return fix(model, latent["samples"], *ratios[: max(0, more)])


def register_sampler(name: str, function: Callable[..., Tensor]) -> None:
    """Add a sampler to every sampler dropdown, or replace the function of one that is there."""
    import comfy.k_diffusion.sampling
    import comfy.samplers

    setattr(comfy.k_diffusion.sampling, f"sample_{name}", function)
    for names in (comfy.samplers.KSAMPLER_NAMES, comfy.samplers.SAMPLER_NAMES):
        if name not in names:  # in place: other packs and nodes hold these very lists
            names.append(name)


def register_scheduler(name: str, function: Callable[[Any, int], Tensor]) -> None:
    """Add a scheduler to every scheduler dropdown, or replace the function of one that is there."""
    import comfy.samplers

    comfy.samplers.SCHEDULER_HANDLERS[name] = comfy.samplers.SchedulerHandler(function, True)
    if name not in comfy.samplers.SCHEDULER_NAMES:
        comfy.samplers.SCHEDULER_NAMES.append(name)

"""The lists of samplers and schedule types, and what a sampler has to know of its host."""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from .models import is_forge
from .page import option_at
from .scripts import Processing

SKIP_NEGATIVE, SKIP_NEGATIVE_TEXT = "skip_early_cond", "Skip Early CFG"


def register_sampler(name: str, make: Callable[[Any], Any], options: dict[str, Any]) -> None:
    """Add a sampler to the dropdowns, or replace the one of that name; keeps others' entries."""
    from modules import sd_samplers, sd_samplers_common

    data = sd_samplers_common.SamplerData(name, make, [name.lower()], options)
    _put(sd_samplers.all_samplers, data)
    sd_samplers.all_samplers_map[name] = data
    sd_samplers.set_samplers()


def register_scheduler(name: str, label: str, function: Callable[..., Tensor]) -> None:
    """Add a schedule type to the dropdowns, or replace the one of that name."""
    from modules import sd_schedulers

    entry = sd_schedulers.Scheduler(name, label, function, need_inner_model=True)
    _put(sd_schedulers.schedulers, entry)
    sd_schedulers.schedulers_map.update({name: entry, label: entry})


def _put(known: list[Any], entry: Any) -> None:
    for place, item in enumerate(known):
        if item.name == entry.name:
            known[place] = entry
            return
    known.append(entry)


def sampler_base() -> type:
    """The host's class of k-diffusion samplers."""
    from modules.sd_samplers_kdiffusion import KDiffusionSampler

    return KDiffusionSampler


def skipped_steps(p: Processing, steps: int | None) -> int:
    """How many sigmas the host cuts off the front of a grid for image to image."""
    from modules import sd_samplers_common

    total, encoded = sd_samplers_common.setup_img2img_steps(p, steps)
    return max(0, total - encoded - 1)


def initial_noise_factor(sigma: Tensor, flow: bool) -> Tensor:
    """The factor on the host's initial noise: a flow starts from it as it is, VP at unit variance.

    A1111 starts at noise * sigma, or noise * sqrt(1 + sigma^2) with "SGM noise multiplier".
    """
    from modules import shared

    one = sigma.new_ones(())
    with_signal = (1 + sigma**2).sqrt()
    multiplied = bool(getattr(shared.opts, "sgm_noise_multiplier", False))
    if flow:
        return one if is_forge() or not multiplied else sigma / with_signal
    return one if multiplied else with_signal / sigma


def sample_as_flow(denoiser: Any, levels: Tensor) -> Any:
    """Put a flow in the place of the host's own denoiser of an SDXL; returns it.

    Args:
        denoiser: the host's CFGDenoiser.
        levels: the flow's noise levels, increasing, float32, shape (1000,).
    """
    import k_diffusion.external
    from modules import shared

    base: Any = k_diffusion.external.DiscreteSchedule

    class FlowDenoiser(base):
        """The network fed the noised latent as it is, at 1000 times its noise level."""

        dpdmd_flow = True

        def forward(self, latent: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
            """The clean latent, (B, C, h, w)."""
            velocity = shared.sd_model.apply_model(latent, 1000 * sigma, **conditions)
            return latent - sigma.reshape(-1, 1, 1, 1).to(latent) * velocity

    if not getattr(denoiser.inner_model, "dpdmd_flow", False):
        denoiser.model_wrap = FlowDenoiser(levels.to(shared.device), False)
    return denoiser.inner_model


@contextlib.contextmanager
def noising_as_flow() -> Iterator[None]:
    """Inside, the host noises an image to a level s as (1 - s) * image + s * noise."""
    from modules import shared

    model = shared.sd_model
    model.add_noise_to_latent = lambda x, noise, amount: x * (1 - amount) + noise * amount
    try:
        yield
    finally:
        del model.add_noise_to_latent


def noise_sampler(denoiser: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Unit noise from the host's seeded stream, one for each image of a batch.

    The stream itself is asked: the module of samplers that hosts let draw from it is k_diffusion's
    in A1111 and Forge, and another in reForge.
    """
    return lambda *_: denoiser.p.rng.next()


def set_total_steps(denoiser: Any, steps: int) -> None:
    """Tell the progress bar how many evaluations there will really be."""
    from modules import shared

    denoiser.total_steps = denoiser.steps = steps
    shared.state.sampling_steps = steps


@contextlib.contextmanager
def without_negative(denoiser: Any, guidance_scale: float, conditioning: Any) -> Iterator[None]:
    """Leave the negative prompt out while the block runs, where that changes nothing.

    A1111 evaluates it at CFG 1, too. Its own switch for leaving it out is turned on meanwhile.
    """
    if guidance_scale != 1.0 or is_forge() or not _plain(conditioning):
        yield
        return
    said = denoiser.p.extra_generation_params
    was_said = SKIP_NEGATIVE_TEXT in said
    try:
        with option_at(SKIP_NEGATIVE, 1.0):
            yield
    finally:
        if not was_said:
            said.pop(SKIP_NEGATIVE_TEXT, None)


def _plain(conditioning: Any) -> bool:
    """Whether every image has one prompt of weight 1; "AND" needs the negative prompt."""
    batch = getattr(conditioning, "batch", None)
    if batch is None:
        return False
    return all(len(prompts) == 1 and prompts[0].weight == 1.0 for prompts in batch)

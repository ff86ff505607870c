"""Everything that touches ComfyUI. Nothing is imported from it before it is needed.

It is one long module so that one place shows all we ask of the host. Node classes can be defined,
and tested, where there is no ComfyUI. What a version of it has is
found out by looking (hasattr, signatures), from 0.3.60 on.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import LoraError, SettingsError
from .lora_fit import Applied, applied

Model = Any
"""A ComfyUI ModelPatcher."""
Conditioning = list[Any]
Latent = dict[str, Any]
RECIPE_ATTACHMENT = "dpdmd_recipe"
"""Recipe text on a MODEL; unlike `lora_metadata` it survives LoRAs that are loaded later."""


def is_here() -> bool:
    """Whether this process is a ComfyUI."""
    return "comfy.samplers" in sys.modules


# Models


@dataclass(frozen=True)
class ModelFacts:
    """What a MODEL is; family or prediction is empty for one that is none of ours."""

    family: str
    prediction: str
    shift: float | None = None
    zero_terminal_snr: bool = False
    name: str = ""


def model_facts(model: Model) -> ModelFacts:
    """Family, prediction and schedule of a MODEL; SettingsError if it is no ordinary one."""
    inner = getattr(model, "model", None)
    if inner is None or not hasattr(model, "get_model_object"):
        raise SettingsError(
            f"This MODEL ({type(model).__name__}) comes from a loader that does not give ComfyUI's "
            "own kind of model. Load the checkpoint with Load Checkpoint."
        )
    sampling = model.get_model_object("model_sampling")
    prediction = _prediction(sampling)
    return ModelFacts(
        family=_family(inner),
        prediction=prediction,
        shift=float(sampling.shift)
        if prediction == "flow" and hasattr(sampling, "shift")
        else None,
        zero_terminal_snr=bool(getattr(sampling, "zsnr", False)),
        name=type(inner).__name__,
    )


PREDICTIONS = (("EPS", "eps"), ("V_PREDICTION", "v"), ("CONST", "flow"), ("X0", "x0"))
OTHER_SAMPLING = {"EDM", "LCM", "IMG_TO_IMG", "IMG_TO_IMG_FLOW", "ModelSamplingContinuousEDM"}
"""Classes derived from those above that mean something else."""


def _prediction(sampling: Any) -> str:
    kinds = {kind.__name__ for kind in type(sampling).__mro__}
    if kinds & OTHER_SAMPLING:
        return ""
    return next((name for kind, name in reversed(PREDICTIONS) if kind in kinds), "")


def _family(inner: Any) -> str:
    kinds = [kind.__name__ for kind in type(inner).__mro__]
    if kinds[0] in ("SD3", "SDXL"):
        return kinds[0].lower()
    unet = getattr(getattr(inner, "model_config", None), "unet_config", {}) or {}
    is_sd1 = kinds[0] == "BaseModel" and unet.get("context_dim") == 768
    return "sd1" if is_sd1 and unet.get("adm_in_channels") is None else ""


def attachment(model: Model, key: str) -> Any:
    """What somebody attached to a MODEL under that key, None for nothing."""
    found = getattr(model, "get_attachment", None)
    return found(key) if found is not None else getattr(model, "attachments", {}).get(key)


def attach(model: Model, key: str, value: Any) -> None:
    """Attach something to a MODEL that is a clone of one's own."""
    if hasattr(model, "set_attachments"):
        model.set_attachments(key, value)
    else:
        model.attachments[key] = value


# LoRA files


def file_names(kind: str) -> list[str]:
    """Files of a folder type ("checkpoints", "loras") as the host lists them; none outside it."""
    if not is_here():
        return []
    import folder_paths

    return list(folder_paths.get_filename_list(kind))


def file_path(kind: str, name: str) -> Path:
    """Where a listed file lies; SettingsError if it has gone."""
    import folder_paths

    found = folder_paths.get_full_path(kind, name)
    if found is None:
        folders = ", ".join(folder_paths.get_folder_paths(kind))
        raise SettingsError(
            f"{name} is not among the {kind}. It was moved or deleted, or never was in {folders}. "
            "Press R to refresh the lists and choose another."
        )
    return Path(found)


@dataclass(frozen=True)
class LoadedLora:
    """A MODEL with a LoRA, and how many of the LoRA's modules took hold of it."""

    model: Model
    applied: Applied


def load_lora(model: Model, path: Path, strength: float) -> LoadedLora:
    """A clone of the MODEL with the LoRA's patches, its metadata attached as core loaders do."""
    import comfy.sd
    import comfy.utils

    try:
        weights, metadata = comfy.utils.load_torch_file(
            str(path), safe_load=True, return_metadata=True
        )
    except Exception as error:  # whatever a damaged file makes a loader raise
        raise LoraError(
            f"{path.name} cannot be read ({error}). It is damaged or cut off; download it again."
        ) from error
    patched, _ = comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)
    if metadata:
        attach(patched, "lora_metadata", metadata)
    return LoadedLora(patched, applied(model, patched))


def only_strength(model: Model) -> float | None:
    """Strength of the one LoRA whose patches lie on a MODEL; None if there may be several."""
    lists = getattr(model, "patches", {}).values()
    if any(len(patches) != 1 for patches in lists):
        return None
    strengths = {float(patch[0]) for (patch,) in lists}
    return strengths.pop() if len(strengths) == 1 else None


def patch_count(model: Model) -> int:
    """How many weight patches lie on a MODEL."""
    return sum(len(patches) for patches in getattr(model, "patches", {}).values())


# Sampling


def sampler_object(function: Callable[..., Tensor], options: Mapping[str, Any]) -> Any:
    """A SAMPLER of a function with k-diffusion's call contract."""
    import comfy.samplers

    return comfy.samplers.KSAMPLER(function, dict(options))


def noise_sampler(x: Tensor, seed: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Unit noise from the host's own seeded stream, as its samplers draw it."""
    import comfy.k_diffusion.sampling

    return comfy.k_diffusion.sampling.default_noise_sampler(x, seed=seed)


def patcher_of(denoiser: Any) -> Model | None:
    """The MODEL behind the callable that samplers are handed; None if it cannot be found."""
    guider = getattr(denoiser, "inner_model", None)
    return getattr(guider, "model_patcher", None)


def is_flow(denoiser: Any) -> bool:
    """Whether the model behind a sampler's callable is a flow."""
    model = patcher_of(denoiser)
    if model is None:
        return False
    kinds = type(model.get_model_object("model_sampling")).__mro__
    return any(kind.__name__ == "CONST" for kind in kinds)


def sample(
    model: Model,
    sampler: Any,
    sigmas: Tensor,
    guidance_scale: float,
    positive: Conditioning,
    negative: Conditioning | None,
    latent: Latent,
    seed: int,
    *,
    done: int = 0,
    total: int = 0,
) -> Latent:
    """Sample as core's KSampler does: same noise for a seed, masks, previews, interrupts.

    Args:
        negative: None where guidance is off; then it is not evaluated.
        done: steps that the progress bar shows as done before these.
        total: steps of the whole progress bar; 0 for these alone.
    """
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import comfy.utils

    start = _fitting_latent(model, latent)
    noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    guider = comfy.samplers.CFGGuider(model)
    if negative is None:
        guider.inner_set_conds({"positive": positive})
    else:
        guider.set_conds(positive, negative)
    guider.set_cfg(guidance_scale)
    samples = guider.sample(
        noise,
        start,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=_preview_callback(model, done, total or len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    samples = samples.to(comfy.model_management.intermediate_device())
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}
    return kept | {"samples": samples}


def _preview_callback(model: Model, done: int, total: int) -> Callable[..., None]:
    """The host's progress and preview of steps that are a part of more."""
    import latent_preview

    show = latent_preview.prepare_callback(model, total)
    return lambda step, x0, x, _: show(done + step, x0, x, total)


def bypass_hook() -> type[Any] | None:
    """The host's hook that adds a LoRA to a layer's output, None where it has none."""
    import comfy.weight_adapter as adapters

    return getattr(adapters, "BypassForwardHook", None)


def core_sampling(model: Model, steps: int) -> tuple[Any, Tensor]:
    """(SAMPLER, levels) of core's KSampler with euler and simple, for a MODEL of any family."""
    import comfy.samplers

    schedule = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(schedule, "simple", steps)
    return comfy.samplers.sampler_object("euler"), sigmas


def _fitting_latent(model: Model, latent: Latent) -> Tensor:
    """The latent with the channels of the model, if it is an empty one of another kind."""
    import comfy.sample

    fix = comfy.sample.fix_empty_latent_channels
    ratios = (latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal"))
    more = len(inspect.signature(fix).parameters) - 2
    return fix(model, latent["samples"], *ratios[: max(0, more)])


# The dropdowns of KSampler


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


# Attention


def with_attention(model: Model, function: Callable[..., Tensor]) -> Model:
    """A clone of the MODEL whose attention is `function(original, q, k, v, heads, ...)`."""
    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    patched.model_options["transformer_options"] = {
        **options, "optimized_attention_override": function,
    }  # fmt: skip
    return patched


def attention_in_force() -> str:
    """The attention that this ComfyUI was started with, in its own word."""
    import comfy.ldm.modules.attention as attention

    return getattr(attention.optimized_attention, "__name__", "unknown").removeprefix("attention_")


def load_device(model: Model) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that a MODEL's network runs with."""
    inner = model.model
    dtype = getattr(inner, "manual_cast_dtype", None)
    if dtype is None:
        dtype = inner.get_dtype() if hasattr(inner, "get_dtype") else torch.float32
    return torch.device(model.load_device), dtype


# Training: folders, memory, progress, interrupts

MODEL_FOLDERS = ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras")


def folders(*kinds: str) -> list[Path]:
    """Folders of those types, each once, as the host names them; types it lacks have none."""
    import folder_paths

    known = folder_paths.folder_names_and_paths
    named = [folder_paths.get_folder_paths(kind) for kind in kinds if kind in known]
    return [Path(path) for path in dict.fromkeys(path for paths in named for path in paths)]


def listed_name(kind: str, path: Path) -> str:
    """How the host's list names a file, which is looked at anew; its file name if it has none."""
    import folder_paths

    folder_paths.filename_list_cache.pop(kind, None)
    for folder in folders(kind):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return path.name


def input_folder() -> Path:
    """Where the host looks for files that nodes read."""
    import folder_paths

    return Path(folder_paths.get_input_directory())


def output_folder() -> Path:
    """Where the host saves pictures."""
    import folder_paths

    return Path(folder_paths.get_output_directory())


def checkpoint_of(model: Model) -> Path | None:
    """The file that a MODEL was loaded from, where the host remembers it."""
    made_by = getattr(model, "cached_patcher_init", None)
    first = made_by[1][0] if made_by and len(made_by) > 1 and made_by[1] else None
    return Path(first) if isinstance(first, str) and Path(first).is_file() else None


def changed_objects(model: Model) -> list[str]:
    """Names of parts that somebody replaced on a MODEL, such as its sampling."""
    return sorted(getattr(model, "object_patches", {}) or {})


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA, as core's nodes pass them on."""
    import comfy.utils

    return comfy.utils.load_torch_file(str(path), safe_load=True)


def free_memory() -> None:
    """Take the host's models off the device; it loads them again when it needs them."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def device_memory() -> int:
    """Bytes of the graphics card; 0 where the host runs without one."""
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    kind = getattr(device, "type", "cpu")
    return 0 if kind in ("cpu", "mps") else int(comfy.model_management.get_total_memory(device))


def progress_bar(total: int, node_id: str | None) -> Any:
    """A progress bar of a node; `show_progress` moves it."""
    import comfy.utils

    takes_node = "node_id" in inspect.signature(comfy.utils.ProgressBar.__init__).parameters
    return comfy.utils.ProgressBar(total, **({"node_id": node_id} if takes_node else {}))


def show_progress(bar: Any, done: int, total: int, picture: Any = None) -> None:
    """Move a progress bar, with a PIL picture to show on the node, if there is one."""
    preview = None if picture is None else ("JPEG", picture, max(picture.size))
    bar.update_absolute(done, max(1, total), preview)


def notify(node_id: str | None, text: str) -> None:
    """Write a line on a node while it runs, where the host has a place for it."""
    import server

    instance = getattr(server.PromptServer, "instance", None)
    send = getattr(instance, "send_progress_text", None)
    if node_id is not None and send is not None:
        send(text, node_id)


def check_interrupt() -> None:
    """Raise the host's own exception if the person pressed Cancel. It is no `Exception`."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    """Whether that is what `check_interrupt` raises."""
    import comfy.model_management

    return isinstance(error, comfy.model_management.InterruptProcessingException)


def blocked() -> Any:
    """An output that makes the host leave out what needs it; None where it has no such thing."""
    try:
        from comfy_execution.graph_utils import ExecutionBlocker
    except ImportError:
        return None
    return ExecutionBlocker(None)


def show_picture(picture: Any) -> dict[str, str]:
    """A PIL picture in the host's folder for previews; what a node's "images" output names."""
    import folder_paths

    place = folder_paths.get_temp_directory()
    full, name, count, subfolder, _ = folder_paths.get_save_image_path("dpdmd", place)
    file = f"{name}_{count:05}_.png"
    Path(full).mkdir(parents=True, exist_ok=True)
    picture.save(Path(full) / file, compress_level=1)
    return {"filename": file, "subfolder": subfolder, "type": "temp"}


# The server

ANSWER = "dpdmd_answer"
"""Where a server keeps the function that answers; a reloaded pack puts its own there."""


def serve(
    prefix: str,
    limit: int,
    answer: Callable[[str, str, Mapping[str, str], bytes | None, Mapping[str, str]], Any],
) -> None:
    """Answer all requests below `prefix`, in threads. Called again, the last `answer` counts.

    Args:
        limit: bytes of a body that are read; of a larger one `answer` is handed None.
        answer: (method, path, query, body, headers) -> an answer with status, content_type, body
            and headers.
    """
    import asyncio

    import server
    from aiohttp import web

    instance = getattr(server.PromptServer, "instance", None)
    if instance is None:
        return
    known = hasattr(instance, ANSWER)
    setattr(instance, ANSWER, answer)
    if known:
        return

    async def handler(request: Any) -> Any:
        body = await _read_body(request, limit) if request.can_read_body else b""
        asked = (request.method, request.raw_path.partition("?")[0], dict(request.query), body)
        current = getattr(instance, ANSWER)
        found = await asyncio.to_thread(current, *asked, dict(request.headers))
        headers = {**found.headers, "Content-Type": found.content_type}
        return web.Response(status=found.status, body=found.body, headers=headers)

    for register in (instance.routes.get, instance.routes.post):
        register(prefix + "/{rest:.*}")(handler)


async def _read_body(request: Any, limit: int) -> bytes | None:
    """The body, or None once it is larger than `limit`."""
    found = bytearray()
    async for part in request.content.iter_any():
        found += part
        if len(found) > limit:
            return None
    return bytes(found)

"""Everything that touches the web UI: A1111, Forge and their relatives, told apart by looking.

It is one long module so that one place shows all we ask of the hosts.

Nothing is imported from a host before it is needed, so the rest can be tested without one.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Processing = Any
"""The host's StableDiffusionProcessing: one generation."""
FORGE_PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v_prediction": "v", "const": "flow"}
ZERO_SNR_SIGMA = 1000.0
"""A VP model whose highest level is above this has zero terminal SNR; usual ones end at 14.6."""
SKIP_NEGATIVE, SKIP_NEGATIVE_TEXT = "skip_early_cond", "Skip Early CFG"
LORA_BESIDE = "lora_functional"
FOLDER_OPTIONS = ("ckpt_dir", "lora_dir", "vae_dir", "text_encoder_dir")


def is_here() -> bool:
    """Whether this process is a web UI."""
    return "modules.sd_samplers" in sys.modules


# The model


@dataclass(frozen=True)
class ModelFacts:
    """What the loaded checkpoint is; `family` is empty for one that is none of ours."""

    family: str
    prediction: str
    shift: float | None = None
    zero_terminal_snr: bool = False


def model_facts(sigmas: Tensor | None = None) -> ModelFacts | None:
    """Facts of the loaded checkpoint; None while none is loaded.

    Args:
        sigmas: the levels of the denoiser in use, increasing.
    """
    from modules import shared

    model = None if _awaits_model() else shared.sd_model
    flags = {name: bool(getattr(model, f"is_{name}", False)) for name in ("sd1", "sdxl", "sd3")}
    if model is None or not hasattr(model, "is_sd1"):
        return None
    family = next((name for name, flag in flags.items() if flag), "")
    predictor = _predictor(model)
    if predictor is not None:
        prediction = FORGE_PREDICTIONS.get(str(getattr(predictor, "prediction_type", "")), "")
        shift = getattr(predictor, "shift", None)
    else:
        prediction = "v" if getattr(model, "parameterization", "eps") == "v" else "eps"
        shift = None
    if family == "sd3":
        prediction, shift = "flow", float(shift or 3.0)
    else:
        shift = None
    zero = sigmas is not None and family != "sd3" and float(sigmas[-1]) > ZERO_SNR_SIGMA
    return ModelFacts(family, prediction, shift, zero)


def _awaits_model() -> bool:
    """Whether another checkpoint is chosen than is loaded: Forge loads when it generates."""
    from modules import sd_models

    data = sd_models.model_data
    chosen = getattr(data, "forge_loading_parameters", None)
    return chosen is not None and str(chosen) != getattr(data, "forge_hash", None)


def _predictor(model: Any) -> Any:
    """Forge's description of the schedule; None elsewhere."""
    unet = getattr(getattr(model, "forge_objects", None), "unet", None)
    return getattr(getattr(unet, "model", None), "predictor", None)


def skips_negative_itself() -> bool:
    """Whether the host leaves the negative prompt out at CFG 1 of its own accord."""
    from modules import shared

    return hasattr(shared.sd_model, "forge_objects")


# LoRA files


@dataclass(frozen=True)
class Lora:
    """A LoRA by the name a prompt calls it."""

    name: str
    path: Path
    strength: float = 1.0


def _networks() -> ModuleType | None:
    """The built-in extension that holds the LoRAs."""
    return sys.modules.get("networks")


def active_loras() -> list[Lora]:
    """The LoRAs of the generation that runs."""
    networks = _networks()
    found = []
    for net in getattr(networks, "loaded_networks", []):
        on_disk = getattr(net, "network_on_disk", None)
        if on_disk is not None:
            strength = float(getattr(net, "unet_multiplier", 1.0))
            found.append(Lora(str(net.name), Path(on_disk.filename), strength))
    return found


def lora_path(name: str, *, fresh: bool = False) -> Path | None:
    """The file that `<lora:name:...>` calls; None if the host knows no such LoRA.

    Args:
        fresh: look into the folder again for a name that is not known, as the host itself does.
    """
    networks = _networks()
    if networks is None:
        return None
    found = _listed_lora(networks, name)
    if found is None and (fresh or not networks.available_networks):
        networks.list_available_networks()
        found = _listed_lora(networks, name)
    return found


def _listed_lora(networks: ModuleType, name: str) -> Path | None:
    forbidden = getattr(networks, "forbidden_network_aliases", {})
    by_alias = {} if name.lower() in forbidden else networks.available_network_aliases
    on_disk = by_alias.get(name) or networks.available_networks.get(name)
    return Path(on_disk.filename) if on_disk is not None else None


# Sampling


def register_sampler(name: str, make: Callable[[Any], Any], options: dict[str, Any]) -> None:
    """Add a sampler to the dropdowns, or replace the one of that name; keeps others' entries."""
    from modules import sd_samplers, sd_samplers_common

    data = sd_samplers_common.SamplerData(name, make, [name.lower()], options)
    known = sd_samplers.all_samplers
    places = [place for place, item in enumerate(known) if item.name == name]
    if places:
        known[places[0]] = data
    else:
        known.append(data)
    sd_samplers.all_samplers_map[name] = data
    sd_samplers.set_samplers()


def register_scheduler(name: str, label: str, function: Callable[..., Tensor]) -> None:
    """Add a schedule type to the dropdowns, or replace the one of that name."""
    from modules import sd_schedulers

    entry = sd_schedulers.Scheduler(name, label, function, need_inner_model=True)
    known = sd_schedulers.schedulers
    places = [place for place, item in enumerate(known) if item.name == name]
    if places:
        known[places[0]] = entry
    else:
        known.append(entry)
    sd_schedulers.schedulers_map.update({name: entry, label: entry})


def sampler_base() -> type:
    """The host's class of k-diffusion samplers."""
    from modules.sd_samplers_kdiffusion import KDiffusionSampler

    return KDiffusionSampler


def skipped_levels(p: Processing, steps: int | None) -> int:
    """How many levels the host cuts off the front of a grid for image to image."""
    from modules import sd_samplers_common

    total, encoded = sd_samplers_common.setup_img2img_steps(p, steps)
    return max(0, total - encoded - 1)


def start_factor(sigma: Tensor, flow: bool) -> Tensor:
    """What start noise has to be multiplied by so that a flow has it as it is, VP at unit variance.

    A1111 starts at noise * sigma, or noise * sqrt(1 + sigma^2) with "SGM noise multiplier".
    """
    from modules import shared

    one = sigma.new_ones(())
    with_signal = (1 + sigma**2).sqrt()
    multiplied = bool(getattr(shared.opts, "sgm_noise_multiplier", False))
    if flow:
        return one if skips_negative_itself() or not multiplied else sigma / with_signal
    return one if multiplied else with_signal / sigma


def noise_sampler(x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Unit noise from the host's seeded stream, one for each picture of a batch."""
    import k_diffusion.sampling

    return lambda *_: k_diffusion.sampling.torch.randn_like(x)


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
    from modules import shared

    data = shared.opts.data
    known = SKIP_NEGATIVE in getattr(shared.opts, "data_labels", {})
    if guidance_scale != 1.0 or not known or skips_negative_itself() or not _plain(conditioning):
        yield
        return
    said = denoiser.p.extra_generation_params
    was_said, had, before = (
        SKIP_NEGATIVE_TEXT in said,
        SKIP_NEGATIVE in data,
        data.get(SKIP_NEGATIVE),
    )
    data[SKIP_NEGATIVE] = 1.0
    try:
        yield
    finally:
        if had:
            data[SKIP_NEGATIVE] = before
        else:
            data.pop(SKIP_NEGATIVE, None)
        if not was_said:
            said.pop(SKIP_NEGATIVE_TEXT, None)


def _plain(conditioning: Any) -> bool:
    """Whether every picture has one prompt of weight 1; "AND" needs the negative prompt."""
    batch = getattr(conditioning, "batch", None)
    if batch is None:
        return False
    return all(len(prompts) == 1 and prompts[0].weight == 1.0 for prompts in batch)


def can_take_loras_off() -> bool:
    """Whether the host keeps LoRAs so that one can be taken off alone; early Forge forks do not."""
    from modules import shared

    objects = getattr(shared.sd_model, "forge_objects", None)
    return objects is None or hasattr(objects.unet, "lora_patches")


@contextlib.contextmanager
def loras_off(names: Collection[str]) -> Iterator[None]:
    """Take these LoRAs off the network while the block runs; the others stay on.

    Forge puts its saved weights back and merges again afterwards. A1111 would rewrite all weights
    both ways: there LoRAs are computed beside the layers (`lora_beside_layers`), these not at all.
    """
    from modules import shared

    if skips_negative_itself():
        objects = shared.sd_model.forge_objects
        paths = {str(lora.path) for lora in active_loras() if lora.name in names}
        unet, without = objects.unet, objects.unet.clone()
        kept = {key: value for key, value in unet.lora_patches.items() if key[0] not in paths}
        without.lora_patches = kept
        objects.unet = without
        try:
            without.refresh_loras()
            yield
        finally:
            objects.unet = unet
            unet.refresh_loras()
        return
    loaded = getattr(_networks(), "loaded_networks", [])
    chosen = [(n, n.unet_multiplier, n.modules) for n in loaded if str(n.name) in names]
    try:
        for net, *_ in chosen:
            net.unet_multiplier, net.modules = 0.0, {}  # not even computed
        yield
    finally:
        for net, strength, layers in chosen:
            net.unet_multiplier, net.modules = strength, layers


@contextlib.contextmanager
def lora_beside_layers() -> Iterator[None]:
    """A1111: compute LoRAs beside the layers instead of writing them into the weights."""
    from modules import shared

    data = shared.opts.data
    if skips_negative_itself() or LORA_BESIDE not in getattr(shared.opts, "data_labels", {}):
        yield
        return
    had, before = LORA_BESIDE in data, data.get(LORA_BESIDE)
    data[LORA_BESIDE] = True
    try:
        yield
    finally:
        if had:
            data[LORA_BESIDE] = before
        else:
            data.pop(LORA_BESIDE, None)


# Attention


def _attention_classes() -> list[type]:
    """The classes of A1111's networks that attend; none in hosts that choose at their start."""
    places = ("ldm.modules.attention", "sgm.modules.attention")
    loaded = [sys.modules.get(name) for name in places]
    if "modules.sd_hijack" not in sys.modules:
        return []
    found = [getattr(module, "CrossAttention", None) for module in loaded]
    return [kind for kind in found if kind is not None]


def has_attention_classes() -> bool:
    """Whether attention can be replaced here."""
    return bool(_attention_classes())


def replace_attention(forward: Callable[..., Tensor]) -> list[tuple[type, Any]]:
    """Give the networks' classes another forward; what they had."""
    before = [(kind, kind.__dict__["forward"]) for kind in _attention_classes()]
    for kind, _ in before:
        kind.forward = forward  # type: ignore[attr-defined]
    return before


def restore_attention(before: list[tuple[type, Any]] | None = None) -> None:
    """Put back what `replace_attention` returned, or without it the host's plain attention."""
    if before is None:
        from modules.hypernetworks import hypernetwork

        plain = hypernetwork.attention_CrossAttention_forward
        before = [(kind, plain) for kind in _attention_classes()]
    for kind, forward in before:
        kind.forward = forward  # type: ignore[attr-defined]


def hypernetwork_contexts(context: Tensor) -> tuple[Tensor, Tensor]:
    """The context for keys and for values, as the loaded hypernetworks change it."""
    from modules import shared
    from modules.hypernetworks import hypernetwork

    return hypernetwork.apply_hypernetworks(shared.loaded_hypernetworks, context)


def add_optimizer(optimizer: Any) -> None:
    """Put an entry into the list of attention optimizers, where the host has one and calls it."""
    from modules import script_callbacks

    if hasattr(script_callbacks, "on_list_optimizers"):
        script_callbacks.on_list_optimizers(lambda listed: listed.append(optimizer))


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """Where, and in which type, the host's networks run."""
    from modules import devices

    return torch.device(devices.device), devices.dtype


# Options and notes


def option(name: str, default: Any) -> Any:
    """The value of one of our settings."""
    from modules import shared

    return getattr(shared.opts, name, default)


def comment(p: Processing, text: str) -> None:
    """Show a note below the picture."""
    if hasattr(p, "comment"):
        p.comment(text)


# The script in txt2img and img2img


def script_base() -> type:
    """The host's class of scripts."""
    from modules import scripts

    return scripts.Script


def always_visible() -> Any:
    """The host's word for a script that is there in every generation."""
    from modules import scripts

    return scripts.AlwaysVisible


def add_script(make: Callable[[], type]) -> None:
    """Give the host a script; an earlier one of its name goes."""
    from modules import scripts

    kind = make()
    path = str(Path(__file__).resolve().parents[2] / "scripts" / "dpdmd_studio.py")
    base = str(Path(__file__).resolve().parents[2])
    known = scripts.scripts_data
    known[:] = [data for data in known if data.script_class.__name__ != kind.__name__]
    known.append(scripts.ScriptClassData(kind, path, base, kind.__module__))


def prompt_box(tab: str) -> Any:
    """The component of a tab's prompt, None if it has not been made yet."""
    return _components.get(f"{tab}_prompt")


_components: dict[str, Any] = {}


def watch_components() -> None:
    """Note the prompt boxes while the host builds its page."""
    from modules import script_callbacks

    def note(component: Any, **options: Any) -> None:
        name = options.get("elem_id") or ""
        if name in ("txt2img_prompt", "img2img_prompt"):
            _components[name] = component

    script_callbacks.on_after_component(note)


def prompts_of(p: Processing) -> list[str]:
    """The prompts of a generation with the styles chosen for it, each once."""
    from modules import shared

    if getattr(p, "all_prompts", None):
        return list(dict.fromkeys(p.all_prompts))
    given = p.prompt if isinstance(p.prompt, list) else [p.prompt]
    styles = getattr(p, "styles", None) or []
    return [shared.prompt_styles.apply_styles_to_prompt(text or "", styles) for text in given]


def on_pasted(function: Callable[[str, dict[str, Any]], None]) -> None:
    """Call the function with an infotext and its parts, which it may add to, when one is pasted."""
    from modules import script_callbacks

    script_callbacks.on_infotext_pasted(function)


def plotted_axes(p: Processing) -> set[str]:
    """What the host's X/Y/Z plot around this generation varies, by the names of its axes."""
    values = list(getattr(p, "script_args", None) or [0])
    scripts = getattr(getattr(p, "scripts", None), "selectable_scripts", None) or []
    chosen = values[0] if isinstance(values[0], int) else 0
    if not 1 <= chosen <= len(scripts):
        return set()
    script = scripts[chosen - 1]
    axes = getattr(script, "current_axis_options", [])
    kinds = values[script.args_from : script.args_to][:9:3]
    return {axes[kind].label for kind in kinds if isinstance(kind, int) and 0 <= kind < len(axes)}


def set_settings(
    p: Processing,
    sampler: str,
    steps: int,
    guidance_scale: float,
    plotted: Collection[str] = (),
) -> None:
    """Sampler with its own schedule, steps and guidance of a generation, hires pass included.

    Args:
        plotted: axes of an X/Y/Z plot, whose values stay; other samplers get our schedule then.
    """
    if "Steps" not in plotted:
        p.steps = steps
    if "CFG Scale" not in plotted:
        p.cfg_scale = guidance_scale
    if hasattr(p, "scheduler") and "Schedule type" not in plotted:
        p.scheduler = sampler if "Sampler" in plotted else "Automatic"
    if "Sampler" not in plotted:
        p.sampler_name = sampler
    if hasattr(p, "hr_second_pass_steps") and "Hires steps" not in plotted:
        p.hr_second_pass_steps = 0  # those of the first pass
    if hasattr(p, "hr_cfg"):  # Forge
        p.hr_cfg = guidance_scale


# Training: model files, settings, the tab, requests, memory


def model_folders() -> list[Path]:
    """Folders in which the host looks for checkpoints, LoRAs, VAEs and text encoders."""
    from modules import paths, sd_models, shared

    named = [getattr(shared.cmd_opts, name, None) for name in FOLDER_OPTIONS]
    several = getattr(shared.cmd_opts, "ckpt_dirs", None) or []  # of forks
    models = Path(paths.models_path)
    usual = [sd_models.model_path, *(models / name for name in ("VAE", "text_encoder", "Lora"))]
    every = [Path(folder) for folder in (*named, *several, *usual) if folder]
    return list({folder.resolve(): folder for folder in every if folder.is_dir()}.values())


def lora_folder() -> Path:
    """Where the host looks for LoRAs."""
    from modules import paths, shared

    return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(paths.models_path) / "Lora")


def chosen_checkpoint() -> Path | None:
    """The file of the checkpoint that is chosen in the host; None for none, or another format."""
    from modules import sd_models, shared

    title = getattr(shared.opts, "sd_model_checkpoint", None)
    find = getattr(sd_models, "get_closet_checkpoint_match", None)
    info = find(title) if title and find is not None else None
    path = Path(info.filename) if info is not None else None
    return path if path is not None and path.suffix == ".safetensors" and path.is_file() else None


def checkpoints() -> list[Path]:
    """The files of the host's list that could be trained on."""
    from modules import sd_models

    paths = [Path(info.filename) for info in sd_models.checkpoints_list.values()]
    return [path for path in paths if path.suffix == ".safetensors"]


def style_prompts() -> list[str]:
    """The prompts of the styles that the user saved."""
    from modules import shared

    styles = getattr(getattr(shared, "prompt_styles", None), "styles", {})
    return [str(style.prompt or "") for style in styles.values()]


def extension_folders() -> list[tuple[str, Path]]:
    """(name, folder) of the extensions that are switched on."""
    from modules import extensions

    return [(str(found.name), Path(found.path)) for found in extensions.active()]


def add_setting(section: tuple[str, str], setting: Mapping[str, Any]) -> None:
    """Put a setting on the host's page.

    Args:
        setting: name, default, label and info; "private" keeps it from the host's own API,
            "infotext" is its name in pictures, from which it can be pasted.
    """
    import gradio as gr
    from modules import shared

    kind = gr.Checkbox if isinstance(setting["default"], bool) else gr.Textbox
    info = shared.OptionInfo(setting["default"], setting["label"], kind, section=section)
    info.restrict_api = bool(setting.get("private"))
    info.infotext = setting.get("infotext")
    shared.opts.add_option(setting["name"], info.info(setting["info"]))


def on_settings(function: Callable[[], None]) -> None:
    """Call the function when the host collects settings."""
    from modules import script_callbacks

    script_callbacks.on_ui_settings(function)


def on_tabs(function: Callable[[], list[tuple[Any, str, str]]]) -> None:
    """Call the function when the host collects tabs: (gradio blocks, title, id) each."""
    from modules import script_callbacks

    script_callbacks.on_ui_tabs(function)


def on_started(function: Callable[[Any], None]) -> None:
    """Call the function with the web application once it is there, after each UI reload again."""
    from modules import script_callbacks

    script_callbacks.on_app_started(lambda _, app: function(app))


def serve(app: Any, prefix: str, limit: int, answer: Callable[..., Any]) -> None:
    """Have a function answer all requests below a prefix.

    Args:
        limit: bytes of a body; a larger one is not read.
        answer: (method, path, query, body, headers) -> a response; it runs in a thread.
    """
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response
    from starlette.routing import Route

    async def endpoint(request: Any) -> Response:
        body: bytes | None = b""
        async for chunk in request.stream():
            body = body + chunk if body is not None and len(body) + len(chunk) <= limit else None
        raw = request.scope.get("raw_path") or request.url.path.encode()
        path, query = raw.decode("latin-1").partition("?")[0], dict(request.query_params)
        found = await run_in_threadpool(
            answer, request.method, path, query, body, dict(request.headers)
        )
        headers = {**found.headers, "Content-Type": found.content_type}
        return Response(found.body, found.status, headers)

    route = Route(f"{prefix}/{{rest:path}}", endpoint, methods=["GET", "POST"])
    app.router.routes.insert(0, route)


def credentials() -> list[tuple[str, str]]:
    """(user, password) pairs that the host was started with, for its API and for its page."""
    from modules import initialize_util, shared

    pairs = (getattr(shared.cmd_opts, "api_auth", None) or "").split(",")
    found = [(user, word) for user, colon, word in (p.partition(":") for p in pairs) if colon]
    of_page = getattr(initialize_util, "get_gradio_auth_creds", None)
    pages = list(of_page()) if of_page is not None else []
    return found + [(pair[0], pair[1]) for pair in pages if len(pair) == 2]


def is_public() -> bool:
    """Whether the host was started for other computers to connect."""
    from modules import shared

    address = getattr(shared.cmd_opts, "server_name", None) or "localhost"
    named = any(getattr(shared.cmd_opts, name, None) for name in ("listen", "share", "ngrok"))
    return named or not address.startswith(("127.", "localhost", "::1"))


def generating() -> contextlib.AbstractContextManager[Any]:
    """The host's lock around everything that uses its model; taken in turn."""
    from modules import call_queue

    return call_queue.queue_lock


def has_model() -> bool:
    """Whether a checkpoint is in memory; asking loads none."""
    from modules import sd_models

    return hasattr(sd_models.model_data.sd_model, "is_sd1")


def unload_model() -> None:
    """Give the graphics card's memory free; call it with the lock of `generating` held."""
    from modules import sd_models

    sd_models.unload_model_weights()


def reload_model() -> None:
    """Bring back what `unload_model` took, where the host does not do so itself."""
    from modules import sd_models, shared

    if hasattr(shared.sd_model, "forge_objects"):
        return
    back = getattr(sd_models, "load_model_to_device", None)  # reForge
    if back is not None:
        back()
    elif hasattr(sd_models, "send_model_to_device"):
        sd_models.send_model_to_device(shared.sd_model)


def relist_loras() -> None:
    """Have the host look for LoRA files."""
    networks = _networks()
    if networks is not None:
        networks.list_available_networks()

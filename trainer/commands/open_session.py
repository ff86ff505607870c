"""Everything a distillation needs, made ready from its run directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from diffusers.models.modeling_utils import ModelMixin

from ...app.config.distill_config import DistillConfig
from ...app.config.knobs import AUTO
from ...app.config.new_run import choose_resolutions, note_size, settled
from ...app.config.request import DistillRequest, asked_sampling
from ...app.library.home import prompt_cache
from ...app.prompts.expansion import PromptSource
from ...app.runs.directory import RunDirectory
from ...core.diffusion.guidance import Guidance
from ...core.errors import RunError
from ...core.families import LoraTargets, stated_settings
from ...core.recipe.recipe import MergedLora
from ..attention import noted_kernels, use_attention
from ..device import (
    choose_device,
    choose_dtype,
    describe_device,
    dtype_name,
    first_line,
    is_out_of_memory,
    limit_to_free,
)
from ..distributed import joined
from ..evaluation.monitor import measured_prompts
from ..loading.checkpoint import (
    Checkpoint,
    LoadedCheckpoint,
    OpenedCheckpoint,
    Overrides,
    model_name,
    open_checkpoint,
)
from ..loading.lora_merge import MergingLora
from ..loading.number_format import Loaded, in_first_sound_format, number_formats
from ..loading.prediction_check import check_prediction_type
from ..loading.teacher_loras import included_loras, merged_records, open_teacher_loras
from ..memory.fit import begin_with_fallbacks, find_free_memory, needed_memory
from ..memory.packed_base import store_base
from ..model.conditioning import Conditioning
from ..model.loss_scale import LossScale
from ..model.roles import AdapterRoles, RoleNetwork
from ..text.cache import EncodedPrompts, encode_prompts, estimate_cache_bytes
from ..training.batches import BatchSource, prompts_per_step
from ..training.in_force import SettingsInForce
from ..training.session import Session, TeacherFacts
from ..training.state import checkpoint_identity, run_fingerprint, saved_dtype
from ..training.trainer import Trainer

log = logging.getLogger("dpdmd_studio.commands")


def open_session(run: RunDirectory) -> Session:
    """Encode the prompts, load the model, add the adapters: ready to train or resume.

    Raises:
        DPDMDError: whatever is wrong with the request, its files or its settings.
    """
    request = DistillRequest.from_dict(run.settings())
    as_set = request.config.validate()
    ranks = joined()
    device = choose_device(as_set.device)
    ranks.use_device(device)
    formats = _number_formats(run, request, device)
    log.info("Device: %s, %s", describe_device(device), dtype_name(formats[0]))
    if as_set.fit_memory:
        limit_to_free(device)
    needs = needed_memory(Path(request.model.checkpoint), formats[0], ranks.size)
    memory = find_free_memory(device, ranks)
    config, since = begin_with_fallbacks(run, as_set, needs, memory)
    request = replace(request, config=config)
    loras = open_teacher_loras(request)
    prompts = PromptSource(run.prompts(), config.seed)
    held_out = run.evaluation_prompts() if config.evaluate_every else []

    def load(dtype: torch.dtype) -> Loaded[EncodedPrompts]:
        opened = _open(request, loras, dtype, device)
        note_size(choose_resolutions(config, opened.detection), opened.detection)
        with ranks.main_first():  # the others find the prompts in the cache
            encoded, negative = _encode(opened, prompts, held_out, config)
        return _load(opened, config), encoded, negative

    checkpoint, encoded, negative = in_first_sound_format(formats, load, device, ranks)
    resolutions = choose_resolutions(config, checkpoint.detection)
    attention = use_attention(checkpoint.network, config.attention, noted_kernels(run))
    log.info("Attention: %s", attention)
    check_prediction_type(checkpoint, negative)
    identity = checkpoint_identity(checkpoint.path)
    including = request.include_teacher_loras
    merged = merged_records(loras, included=including)
    teacher = _teacher_facts(config, checkpoint, identity, resolutions, merged)
    included = included_loras(loras, checkpoint) if including else None
    fingerprint = run_fingerprint(as_set, run.prompts(), identity, checkpoint, merged)
    ranks.require_same("settings, prompts, model files or number format", fingerprint)
    channels = checkpoint.detection.latent_channels
    shapes = [(channels, height // 8, width // 8) for width, height in resolutions]
    network = _role_network(checkpoint, config)
    batches = BatchSource(config, prompts, encoded, negative, shapes)
    settings = SettingsInForce(config, teacher.guidance, run, since)
    trainer = Trainer(network, batches, settings, ranks, fingerprint)
    return Session(run, request, checkpoint, trainer, negative, teacher, encoded, shapes, included)


def _number_formats(
    run: RunDirectory, request: DistillRequest, device: torch.device
) -> tuple[torch.dtype, ...]:
    """The formats to try in turn; a run that has saved a state goes on in that of the state."""
    config, saved = request.config, saved_dtype(run)
    if config.dtype == AUTO and device.type == "cuda" and saved is not None:
        return (choose_dtype(saved or AUTO, device),)
    asked = asked_sampling(config.prediction, config.zero_terminal_snr, config.shift)
    formats = number_formats(config.dtype, device, Path(request.model.checkpoint), asked)
    if config.dtype == AUTO and saved and saved not in map(dtype_name, formats):
        raise RunError(
            f"The run computed in {saved} until it stopped, and {device.type}, which is what can "
            f"be used here now, would go on in {dtype_name(formats[-1])}. Probably the GPU is gone "
            "that it was on: restart the computer and see that the GPU is there, then resume. On "
            "this device, start a new run."
        )
    return formats


def _teacher_facts(
    config: DistillConfig,
    checkpoint: LoadedCheckpoint,
    identity: str,
    resolutions: tuple[tuple[int, int], ...],
    merged: tuple[MergedLora, ...],
) -> TeacherFacts:
    name, sha256 = model_name(checkpoint.path), identity if checkpoint.path.is_file() else ""
    detection = checkpoint.detection
    scale = config.teacher_guidance or default_guidance(checkpoint)
    guidance = Guidance(scale, settled(config, detection).guidance_rescale)
    return TeacherFacts(name, sha256, detection, guidance, resolutions, merged)


def _open(
    request: DistillRequest,
    loras: Sequence[MergingLora],
    dtype: torch.dtype,
    device: torch.device,
) -> OpenedCheckpoint:
    files, config = request.model, request.config
    asked = asked_sampling(config.prediction, config.zero_terminal_snr, config.shift)
    overrides = Overrides.of(files, asked, loras)
    path = Path(files.checkpoint)
    opened = open_checkpoint(path, dtype=dtype, device=device, overrides=overrides)
    log.info("%s: %s", opened.path.name, opened.detection.title)
    return opened


def _load(opened: OpenedCheckpoint, config: DistillConfig) -> LoadedCheckpoint:
    """The checkpoint with its denoiser where it stays: on the device, or stored as is asked for.

    Raises:
        RunError: there is too little memory for it.
    """
    try:
        return _stored(opened, config)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"Memory ran out while the denoiser was loaded ({first_line(error)}). Close what else "
            "uses the device and the computer's memory, then resume the run; or start a new one "
            "with --base-weights int8, which halves what it takes of the device, or --offload-base."
        ) from error


def _stored(opened: OpenedCheckpoint, config: DistillConfig) -> LoadedCheckpoint:
    if config.base_weights == "keep" and not config.offload_base:
        return opened.load()
    checkpoint = opened.load("cpu")
    kind, offload, network = config.base_weights, config.offload_base, checkpoint.network
    base = store_base(network, kind, offload=offload, device=checkpoint.device)
    log.info("Base: %s", base)
    return checkpoint


def default_guidance(checkpoint: Checkpoint) -> float:
    """The guidance that the checkpoint says it was made for, else its family's default."""
    stated = stated_settings(checkpoint.path)
    usual = checkpoint.family.sampling.guidance_scale
    return float(stated["guidance_scale"]) if stated else usual


def _role_network(checkpoint: LoadedCheckpoint, config: DistillConfig) -> RoleNetwork:
    """The denoiser with its two adapters."""
    layers: LoraTargets = "full" if config.lora_layers == "full" else "attention"
    roles = AdapterRoles(
        checkpoint.network,
        checkpoint.family.lora.modules(checkpoint.config, layers),
        student_rank=config.student_rank,
        fake_rank=config.fake_rank,
        seed=config.seed,
    )
    if config.gradient_checkpointing:
        cast(ModelMixin, checkpoint.network).enable_gradient_checkpointing()
    half = checkpoint.dtype == torch.float16
    scales = {role: LossScale() for role in ("student", "fake")} if half else {}
    return RoleNetwork(checkpoint.call(), roles, scales)


def _encode(
    checkpoint: Checkpoint,
    prompts: PromptSource,
    held_out: Sequence[str],
    config: DistillConfig,
) -> tuple[EncodedPrompts, Conditioning]:
    """(every prompt of the run, the negative one); those it is measured on lie in the cache."""
    head_start = config.batch_size * (1 + config.fake_head_start) if config.fake_head_start else 0
    needed = prompts.all_needed(config.steps, prompts_per_step(config), head_start)
    texts = list(dict.fromkeys([*needed, config.teacher_negative]))
    size = estimate_cache_bytes(checkpoint, texts, clip_skip=config.clip_skip)
    mebibytes = size / 2**20
    log.info("Prompts: this run uses %d; encoded they take %.0f MiB", len(needed), mebibytes)
    encoded = encode_prompts(
        checkpoint,
        texts,
        clip_skip=config.clip_skip,
        cache_folder=prompt_cache(),
        ahead=measured_prompts(held_out, texts),
    )
    negative = encoded[config.teacher_negative]
    return encoded, negative.zeros() if config.zero_negative else negative

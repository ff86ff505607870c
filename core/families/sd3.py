"""SD3 medium, SD3.5 medium and large: an MMDiT as a flow; CLIP-L, CLIP-G and T5 each optional."""

import math
from collections.abc import Iterator

from ..errors import UnsupportedModelError
from . import base
from .parts.config_values import COUNT, MAX_LAYERS, WHOLE, Rule, check_config, is_whole, one_of

HEAD_WIDTH = 64
SWAPPED: base.Change = "swap_halves"
INPUT_LAYER = "x_embedder.proj.weight"
FOLDER_CLASS = "SD3Transformer2DModel"
LATENT_CHANNELS = 16
MAX_POSITIONS, MEDIUM_DEPTH = 2048, 24
TITLE, TITLE_35, TITLE_LARGE = "SD3 medium", "SD3.5 medium", "SD3.5 large"
ARCHITECTURES = {
    TITLE: "stable-diffusion-3-medium",
    TITLE_35: "stable-diffusion-3-5-medium",
    TITLE_LARGE: "stable-diffusion-3-5-large",
}
"""As the SAI model specification names them."""

VAE = base.VaeFacts(
    scaling_factor=1.5305,
    shift_factor=0.0609,
    # A least-squares fit of decoded pixels on latents, published with InvokeAI's previews.
    rgb_factors=(
        (-0.05, 0.03, 0.07), (-0.06, 0.01, 0.06), (0.16, 0.01, -0.04), (0.14, 0.08, 0.16),
        (0.05, 0.01, -0.07), (0.05, 0.19, 0.06), (0.15, 0.05, 0.07), (-0.09, 0.09, 0.11),
        (-0.12, -0.07, 0.00), (-0.04, 0.08, 0.02), (0.03, 0.06, 0.08), (-0.01, 0.09, -0.09),
        (0.06, 0.06, 0.13), (-0.08, -0.02, -0.13), (-0.10, -0.08, -0.06), (-0.03, -0.08, -0.06),
    ),
)  # fmt: skip

FOLDER_RULES = {
    "num_layers": COUNT,
    "num_attention_heads": COUNT,
    "attention_head_dim": Rule(one_of(HEAD_WIDTH), "64", required=True),
    "caption_projection_dim": WHOLE,
    "joint_attention_dim": WHOLE,
    "pooled_projection_dim": WHOLE,
    "patch_size": Rule(one_of(2), "2"),
    "pos_embed_max_size": Rule(
        lambda value: is_whole(value) and int(str(value)) <= MAX_POSITIONS,
        f"a whole number up to {MAX_POSITIONS}",
        required=True,
    ),
    "sample_size": Rule(is_whole, "a whole number"),
    "out_channels": Rule(one_of(None, LATENT_CHANNELS), "16"),
    "dual_attention_layers": Rule(
        lambda value: (
            value is None
            or (
                isinstance(value, list | tuple)
                and len(value) <= MAX_LAYERS
                and all(type(item) is int and item >= 0 for item in value)
            )
        ),
        "a list of numbers of layers",
    ),
    "qk_norm": Rule(one_of(None, "rms_norm"), "null or 'rms_norm'"),
}

TOP_LEVEL = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
INNER: dict[str, tuple[str, int | None]] = {
    "norm1.linear": ("x_block.adaLN_modulation.1", None),
    "norm1_context.linear": ("context_block.adaLN_modulation.1", None),
    "attn.norm_q": ("x_block.attn.ln_q", None),
    "attn.norm_k": ("x_block.attn.ln_k", None),
    "attn.norm_added_q": ("context_block.attn.ln_q", None),
    "attn.norm_added_k": ("context_block.attn.ln_k", None),
    "attn2.norm_q": ("x_block.attn2.ln_q", None),
    "attn2.norm_k": ("x_block.attn2.ln_k", None),
    "attn.to_q": ("x_block.attn.qkv", 0),
    "attn.to_k": ("x_block.attn.qkv", 1),
    "attn.to_v": ("x_block.attn.qkv", 2),
    "attn.to_out.0": ("x_block.attn.proj", None),
    "attn.add_q_proj": ("context_block.attn.qkv", 0),
    "attn.add_k_proj": ("context_block.attn.qkv", 1),
    "attn.add_v_proj": ("context_block.attn.qkv", 2),
    "attn.to_add_out": ("context_block.attn.proj", None),
    "attn2.to_q": ("x_block.attn2.qkv", 0),
    "attn2.to_k": ("x_block.attn2.qkv", 1),
    "attn2.to_v": ("x_block.attn2.qkv", 2),
    "attn2.to_out.0": ("x_block.attn2.proj", None),
    "ff.net.0.proj": ("x_block.mlp.fc1", None),
    "ff.net.2": ("x_block.mlp.fc2", None),
    "ff_context.net.0.proj": ("context_block.mlp.fc1", None),
    "ff_context.net.2": ("context_block.mlp.fc2", None),
}
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
             "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")  # fmt: skip
DUAL_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
CONTEXT_OUT = ("attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
MODULATION, TIME_WIDTH = "norm1_context.linear", 256


def _describe(tensors: base.Tensors, everything: base.Tensors) -> dict[str, object]:
    dual = "joint_blocks.0.x_block.attn2.qkv.weight" in tensors
    normed = "joint_blocks.0.x_block.attn.ln_q.weight" in tensors
    patch_size = tensors[INPUT_LAYER].shape[2]
    return {
        "title": _title(
            dual=dual, normed=normed, depth=base.count_blocks(tensors, "joint_blocks.")
        ),
        "prediction": "flow",
        "max_resolution": max_resolution(math.isqrt(tensors["pos_embed"].shape[1]), patch_size),
    }


def _title(*, dual: bool, normed: bool, depth: int) -> str:
    """3.5 norms queries and keys; its medium alone has attention twice, large has 38 blocks."""
    return TITLE_35 if dual else TITLE_LARGE if normed and depth > MEDIUM_DEPTH else TITLE


def max_resolution(pos_embed_max_size: int, patch_size: int) -> int:
    """Longest image side, in pixels, that the position table covers."""
    return pos_embed_max_size * patch_size * 8


def _network_config(tensors: base.Tensors) -> base.Config:
    patches, positions = tensors[INPUT_LAYER].shape, tensors["pos_embed"].shape[1]
    width, channels, patch_size = patches[0], patches[1], patches[2]
    depth = base.count_blocks(tensors, "joint_blocks.")
    size = math.isqrt(positions)
    dual = [i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in tensors]
    if size * size != positions or width % HEAD_WIDTH:
        raise UnsupportedModelError(
            f"This MMDiT has width {width} and {positions} positions; the width must be a multiple "
            f"of {HEAD_WIDTH} and the positions a square. Supported: SD3 medium, SD3.5 medium and "
            "large."
        )
    return {
        "sample_size": size * patch_size * 2 // 3,  # 128 for the 192 positions of SD3
        "patch_size": patch_size,
        "in_channels": channels,
        "out_channels": tensors["final_layer.linear.weight"].shape[0] // patch_size**2,
        "num_layers": depth,
        "attention_head_dim": HEAD_WIDTH,
        "num_attention_heads": width // HEAD_WIDTH,
        "joint_attention_dim": tensors["context_embedder.weight"].shape[1],
        "caption_projection_dim": tensors["context_embedder.weight"].shape[0],
        "pooled_projection_dim": tensors["y_embedder.mlp.0.weight"].shape[1],
        "pos_embed_max_size": size,
        "dual_attention_layers": dual,
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in tensors else None,
    }


def _last(config: base.Config) -> int:
    return int(str(config["num_layers"])) - 1


def _module_source(module: str, config: base.Config) -> base.TensorSource:
    if module in TOP_LEVEL:
        return base.TensorSource(
            TOP_LEVEL[module], None, SWAPPED if module == "norm_out.linear" else "none"
        )
    _, index, inner = module.split(".", 2)
    name, part = INNER[inner]
    # The last block leaves its context behind: its modulation is (shift, scale) alone, which
    # diffusers keeps as (scale, shift).
    swapped = inner == "norm1_context.linear" and int(index) == _last(config)
    return base.TensorSource(f"joint_blocks.{index}.{name}", part, SWAPPED if swapped else "none")


def _tensor_source(parameter_name: str, config: base.Config) -> base.TensorSource:
    if parameter_name == "pos_embed.pos_embed":
        return base.TensorSource("pos_embed")
    module, _, leaf = parameter_name.rpartition(".")
    source = _module_source(module, config)
    return base.TensorSource(f"{source.key}.{leaf}", source.part, source.change)


def _lora_modules(config: base.Config, targets: base.LoraTargets) -> list[str]:
    """ "attention" takes attention and feed-forward layers, "full" adds their modulation."""
    dual, last, names = config.get("dual_attention_layers") or [], _last(config), []
    assert isinstance(dual, list | tuple)
    for index in range(last + 1):
        inner = ATTENTION + FEED_FORWARD
        inner += CONTEXT_OUT if index < last else ()
        inner += DUAL_ATTENTION if index in dual else ()
        if targets == "full":
            inner += ("norm1.linear", "norm1_context.linear") if index < last else ("norm1.linear",)
        names += [f"transformer_blocks.{index}.{name}" for name in inner]
    return names


def _parameters(config: base.Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter of the transformer and its shape, by diffusers' name."""
    width = int(str(config["num_attention_heads"])) * HEAD_WIDTH
    size, patch = int(str(config["pos_embed_max_size"])), int(str(config.get("patch_size", 2)))
    channels = int(str(config["in_channels"]))
    outputs = patch**2 * int(str(config.get("out_channels") or channels))
    joint, pooled = (
        int(str(config[name])) for name in ("joint_attention_dim", "pooled_projection_dim")
    )
    times = "time_text_embed"
    linear = {
        f"{times}.timestep_embedder.linear_1": (width, TIME_WIDTH),
        f"{times}.timestep_embedder.linear_2": (width, width),
        f"{times}.text_embedder.linear_1": (width, pooled),
        f"{times}.text_embedder.linear_2": (width, width),
        "context_embedder": (int(str(config["caption_projection_dim"])), joint),
        "norm_out.linear": (2 * width, width),
        "proj_out": (outputs, width),
    }
    found: dict[str, tuple[int, ...]] = {
        "pos_embed.pos_embed": (1, size**2, width),
        "pos_embed.proj.weight": (width, channels, patch, patch),
        "pos_embed.proj.bias": (width,),
    }
    rows = {"norm1.linear": 6, "norm1_context.linear": 6, "ff.net.0.proj": 4,
            "ff_context.net.0.proj": 4}  # fmt: skip
    dual, last = config.get("dual_attention_layers") or (), _last(config)
    assert isinstance(dual, list | tuple)
    for module in [*_lora_modules(config, "full"), f"transformer_blocks.{last}.{MODULATION}"]:
        inner = module.split(".", 2)[2]
        height, inputs = rows.get(inner, 1), 4 if inner.endswith("net.2") else 1
        if inner == MODULATION and module.startswith(f"transformer_blocks.{last}."):
            height = 2
        elif inner == "norm1.linear" and int(module.split(".")[1]) in dual:
            height = 9
        linear[module] = (height * width, inputs * width)
    for name, shape in linear.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for index in range(last + 1) if config.get("qk_norm") else ():
        names = [f"attn.norm_{name}" for name in ("q", "k", "added_q", "added_k")]
        names += ["attn2.norm_q", "attn2.norm_k"] if index in dual else []
        found |= {f"transformer_blocks.{index}.{name}.weight": (HEAD_WIDTH,) for name in names}
    yield from found.items()


def _title_of(config: base.Config) -> str:
    dual, normed = bool(config.get("dual_attention_layers")), bool(config.get("qk_norm"))
    return _title(dual=dual, normed=normed, depth=int(str(config.get("num_layers") or 0)))


def _matches_folder(config: base.Config, pipeline: str) -> bool:
    return (
        config.get("_class_name") == FOLDER_CLASS and config.get("in_channels") == LATENT_CHANNELS
    )


def _describe_folder(config: base.Config) -> dict[str, object]:
    size, patch = config.get("pos_embed_max_size"), config.get("patch_size")
    return {
        "title": _title_of(config),
        "max_resolution": max_resolution(
            size if isinstance(size, int) else 192, patch if isinstance(patch, int) else 2
        ),
    }


def _check_folder(config: base.Config, label: str) -> None:
    check_config(config, FOLDER_RULES, label)
    depth, dual = int(str(config["num_layers"])), config.get("dual_attention_layers") or ()
    width = int(str(config["num_attention_heads"])) * int(str(config["attention_head_dim"]))
    assert isinstance(dual, list | tuple)
    if config["caption_projection_dim"] != width or any(index >= depth for index in dual):
        raise UnsupportedModelError(
            f"{label}: {depth} layers of width {width} do not go with caption_projection_dim "
            f"{config['caption_projection_dim']} and dual_attention_layers {list(dual)}. "
            "Supported: SD3 medium, SD3.5 medium and large."
        )


def _base_model(title: str) -> base.BaseModel:
    version = "3.5" if "3.5" in title else "3"
    size = "large" if title == TITLE_LARGE else "medium"
    repository = f"stabilityai/stable-diffusion-{version}-{size}"
    return base.BaseModel(
        repository,
        "Stability AI Community License",
        "stabilityai-ai-community",
        f"https://huggingface.co/{repository}/blob/main/LICENSE.md",
    )


def _label_note(title: str) -> str:
    name = "SD 3.5" if "3.5" in title else "SD 3"
    return (
        f"Civitai offers no label for {name} any more, so it has to be Other, where few people "
        "look. Hugging Face is the realistic place for this LoRA; README.md is its model card."
    )


def _webui_limits(title: str) -> str:
    if "3.5" in title:
        return " A1111 knows no SD 3.5 and Forge Neo no SD3 at all."
    return " Forge Neo knows no SD3."


FAMILY = base.Family(
    name="sd3",
    label="SD3 / SD3.5",
    short_label="SD3",
    detection=base.DetectionFacts(
        matches=lambda tensors: "joint_blocks.0.context_block.attn.qkv.weight" in tensors,
        describe=_describe,
        input_layer=INPUT_LAYER,
        matches_folder=_matches_folder,
        describe_folder=_describe_folder,
        check_folder=_check_folder,
    ),
    layout=base.LayoutFacts(
        network_config=_network_config,
        tensor_source=_tensor_source,
        parameters=_parameters,
        denoiser_folder="transformer",
        denoiser_title="transformer",
    ),
    sampling=base.SamplingFacts(
        schedule="flow",
        flow_shift=3.0,
        predictions=("flow",),
        guidance_scale=4.5,
        resolution=1024,
        resolution_multiple=16,
    ),
    text=base.TextFacts(
        groups=(
            base.EncoderGroup(("clip_l", "clip_g"), padded=True),
            base.EncoderGroup(("t5xxl",)),
        ),
        prefixes={
            "clip_l": ("text_encoders.clip_l.transformer.",),
            "clip_g": ("text_encoders.clip_g.transformer.",),
            "t5xxl": ("text_encoders.t5xxl.transformer.",),
        },
        context_width="joint_attention_dim",
        pooled_width="pooled_projection_dim",
        pooled_kinds=("clip_l", "clip_g"),
        pooled_input=lambda config: int(str(config["pooled_projection_dim"])),
        needs_all=False,
    ),
    vae=VAE,
    lora=base.LoraFacts(
        modules=_lora_modules,
        module_name=lambda module, config: _module_source(module, config).key,
        fused=True,  # A1111's loader fails on an alpha
        peft_prefix="transformer.",
        names=r"^(joint_blocks_\d+_|transformer_blocks_\d+_(attn_|attn2_to_|ff_|norm1_))",
        base_model_version="sd3_m",
        declared=("sd3",),
        architecture=lambda config: f"{ARCHITECTURES[_title_of(config)]}/lora",
    ),
    sharing=base.SharingFacts(
        labels=("Other",),  # Civitai hides SD 3 and SD 3.5
        label_note=_label_note,
        base_model=_base_model,
        pipeline="StableDiffusion3Pipeline",
        diffusers_reads_kohya=False,
        comfy_reads_peft=True,
        webui_limits=_webui_limits,
        clip_types=("sd3", "sd3"),
        empty_latent="EmptySD3LatentImage",
    ),
    hosts=base.HostFacts("SD3"),
    cost=base.CostFacts(
        parameters=2_469_663_936,
        packed=0.899,
        staying=248e6,
        buffers=42.4e6,
        per_rank={"attention": 1_468_416, "full": 2_033_664},
        per_image={"attention": 744e6, "full": 668e6},
        per_pixel={"attention": 8671.0, "full": 10138.0},
        recomputed=base.Recomputed(per_image=141e6, per_pixel=118.5, kept=522.0),
    ),
    sizes={
        TITLE_LARGE: base.CostFacts(
            parameters=8_146_280_768,
            packed=0.9838,
            staying=132e6,
            buffers=71.0e6,
            per_rank={"attention": 3_297_792, "full": 4_574_592},
            per_image={"attention": 1437e6, "full": 1655e6},
            per_pixel={"attention": 17295.0, "full": 20215.0},
            recomputed=base.Recomputed(per_image=114e6, per_pixel=405.0, kept=972.0),
        ),
    },
)

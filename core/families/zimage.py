"""Z-Image: one stream of image and text tokens as a flow, told of prompts by Qwen3-4B."""

from collections.abc import Iterator

from ..errors import UnsupportedModelError
from . import base
from .parts.config_values import COUNT, WHOLE, Rule, check_config, number, one_of

NAME, LABEL = "zimage", "Z-Image"
FOLDER_CLASS = "ZImageTransformer2DModel"
INPUT_LAYER = "x_embedder.weight"
CAPTION = "cap_embedder.1.weight"
QUERY_NORM = "noise_refiner.0.attention.q_norm.weight"
OTHER_KINDS = (
    "siglip_embedder.0.weight", "dec_net.cond_embed.weight", "clip_text_pooled_proj.0.weight",
)  # fmt: skip
"""Tensors of Z-Image's and Lumina's relatives that need another input."""
WIDTH = 3840
"""By which ComfyUI tells it from Lumina 2, whose class it shares."""
LATENT_CHANNELS, PATCH, TIME_WIDTH, TIME_INNER, MODULATED = 16, 2, 256, 1024, 256
PATCHED = f"{PATCH}-1"
"""How diffusers names the first and the last layer: by height and depth of a patch."""
ROPE_EIGHTHS = (2, 3, 3)
"""Of a head's width that positions in the text, in rows and in columns turn."""
ROPE_LENGTHS = (1536, 512, 512)

# latent = (vae_latent - shift) * scaling, as Flux's published config has it.
VAE = base.VaeFacts(
    scaling_factor=0.3611,
    shift_factor=0.1159,
    # A least-squares fit of decoded pixels on latents, as ComfyUI's previews have it.
    rgb_factors=(
        (-0.0346, 0.0244, 0.0681), (0.0034, 0.0210, 0.0687), (0.0275, -0.0668, -0.0433),
        (-0.0174, 0.0160, 0.0617), (0.0859, 0.0721, 0.0329), (0.0004, 0.0383, 0.0115),
        (0.0405, 0.0861, 0.0915), (-0.0236, -0.0185, -0.0259), (-0.0245, 0.0250, 0.1180),
        (0.1008, 0.0755, -0.0421), (-0.0515, 0.0201, 0.0011), (0.0428, -0.0012, -0.0036),
        (0.0817, 0.0765, 0.0749), (-0.1264, -0.0522, -0.1103), (-0.0280, -0.0881, -0.0499),
        (-0.1262, -0.0982, -0.0778),
    ),
    rgb_bias=(-0.0329, -0.0718, -0.0851),
)  # fmt: skip

TOP_LEVEL = {
    f"all_x_embedder.{PATCHED}": "x_embedder",
    f"all_final_layer.{PATCHED}.linear": "final_layer.linear",
    f"all_final_layer.{PATCHED}.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}
ATTENTION: dict[str, tuple[str, int | None]] = {
    "attention.to_q": ("attention.qkv", 0),
    "attention.to_k": ("attention.qkv", 1),
    "attention.to_v": ("attention.qkv", 2),
    "attention.to_out.0": ("attention.out", None),
    "attention.norm_q": ("attention.q_norm", None),
    "attention.norm_k": ("attention.k_norm", None),
}
PROJECTIONS = (
    "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0",
    "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
)  # fmt: skip
MODULATION = "adaLN_modulation.0"
LISTS = ("noise_refiner", "context_refiner", "layers")

FOLDER_RULES = {
    "all_patch_size": Rule(one_of([PATCH], (PATCH,)), "[2]"),
    "all_f_patch_size": Rule(one_of([1], (1,)), "[1]"),
    "in_channels": Rule(one_of(LATENT_CHANNELS), "16", required=True),
    "dim": WHOLE,
    "n_layers": COUNT,
    "n_refiner_layers": COUNT,
    "n_heads": COUNT,
    "n_kv_heads": COUNT,
    "norm_eps": Rule(number(1e-5), "1e-05"),
    "qk_norm": Rule(one_of(True), "true"),
    "cap_feat_dim": WHOLE,
    "siglip_feat_dim": Rule(one_of(None), "null (Z-Image Omni is not supported)"),
    "rope_theta": Rule(number(256), "256"),
    "t_scale": Rule(number(1000), "1000"),
}


def inner_width(width: int) -> int:
    """Width of a feed-forward layer's inside, as the network's class rounds it."""
    return int(width / 3 * 8)


def _matches(tensors: base.Tensors) -> bool:
    """With tokens of padding, which Lumina 2 has not."""
    return (
        CAPTION in tensors
        and QUERY_NORM in tensors
        and "cap_pad_token" in tensors
        and not any(name in tensors for name in OTHER_KINDS)
    )


def _describe(tensors: base.Tensors, everything: base.Tensors) -> dict[str, object]:
    return {"title": LABEL, "prediction": "flow", "latent_channels": LATENT_CHANNELS}


def _network_config(tensors: base.Tensors) -> base.Config:
    width, text = tensors[CAPTION].shape
    (head,) = tensors[QUERY_NORM].shape
    channels = tensors[INPUT_LAYER].shape[1] // PATCH**2
    rows = tensors["noise_refiner.0.attention.qkv.weight"].shape[0]
    inner = tensors["noise_refiner.0.feed_forward.w1.weight"].shape[0]
    if channels != LATENT_CHANNELS:
        raise UnsupportedModelError(
            f"This transformer of {LABEL}'s kind takes {channels} input channels, where "
            f"{LATENT_CHANNELS} are expected: it is another variant, which is not supported. Give "
            "the ordinary model."
        )
    if width % head or head % 16 or rows != 3 * width or inner != inner_width(width):
        raise UnsupportedModelError(
            f"This transformer has width {width}, heads of {head}, {rows} rows of queries, keys "
            f"and values and a feed-forward layer of {inner}; {LABEL} has heads of a multiple of "
            f"16 that divide the width, {3 * width} rows and a layer of {inner_width(width)}."
        )
    return {
        "all_patch_size": [PATCH],
        "all_f_patch_size": [1],
        "in_channels": channels,
        "dim": width,
        "n_layers": base.count_blocks(tensors, "layers."),
        "n_refiner_layers": base.count_blocks(tensors, "noise_refiner."),
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "cap_feat_dim": text,
        "axes_dims": [head * part // 8 for part in ROPE_EIGHTHS],
        "axes_lens": list(ROPE_LENGTHS),
    }


def _module_source(module: str) -> tuple[str, int | None]:
    if module in TOP_LEVEL:
        return TOP_LEVEL[module], None
    place, _, inner = module.partition(".attention.")
    if not inner:
        return module, None
    name, part = ATTENTION[f"attention.{inner}"]
    return f"{place}.{name}", part


def _tensor_source(parameter_name: str, config: base.Config) -> base.TensorSource:
    module, _, leaf = parameter_name.rpartition(".")
    if not module:  # a token of padding
        return base.TensorSource(leaf)
    name, part = _module_source(module)
    return base.TensorSource(f"{name}.{leaf}", part)


def _number(config: base.Config, name: str) -> int:
    return int(str(config[name]))


def _block(width: int, head: int, *, modulated: bool) -> dict[str, tuple[int, ...]]:
    inner = inner_width(width)
    found: dict[str, tuple[int, ...]] = {
        f"attention.{name}.weight": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    found |= {f"attention.norm_{name}.weight": (head,) for name in "qk"}
    found |= {f"feed_forward.{name}.weight": (inner, width) for name in ("w1", "w3")}
    found["feed_forward.w2.weight"] = (width, inner)
    for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
        found[f"{name}.weight"] = (width,)
    if modulated:
        found[f"{MODULATION}.weight"] = (4 * width, min(width, MODULATED))
        found[f"{MODULATION}.bias"] = (4 * width,)
    return found


def _parameters(config: base.Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter of the transformer and its shape, by diffusers' name."""
    width, text = _number(config, "dim"), _number(config, "cap_feat_dim")
    patch, told = PATCH**2 * _number(config, "in_channels"), min(width, MODULATED)
    linear = {
        f"all_x_embedder.{PATCHED}": (width, patch),
        f"all_final_layer.{PATCHED}.linear": (patch, width),
        f"all_final_layer.{PATCHED}.adaLN_modulation.1": (width, told),
        "t_embedder.mlp.0": (TIME_INNER, TIME_WIDTH),
        "t_embedder.mlp.2": (told, TIME_INNER),
        "cap_embedder.1": (width, text),
    }
    yield from (("x_pad_token", (1, width)), ("cap_pad_token", (1, width)))
    yield "cap_embedder.0.weight", (text,)
    for name, shape in linear.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    for place in LISTS:
        depth = _number(config, "n_layers" if place == "layers" else "n_refiner_layers")
        block = _block(
            width, width // _number(config, "n_heads"), modulated=place != "context_refiner"
        )
        for index in range(depth):
            for name, shape in block.items():
                yield f"{place}.{index}.{name}", shape


def _lora_modules(config: base.Config, targets: base.LoraTargets) -> list[str]:
    """ "attention" takes attention and feed-forward layers, "full" adds their modulation."""
    inner = PROJECTIONS + ((MODULATION,) if targets == "full" else ())
    return [f"layers.{i}.{name}" for i in range(_number(config, "n_layers")) for name in inner]


def _check_folder(config: base.Config, label: str) -> None:
    check_config(config, FOLDER_RULES, label)
    width, heads = _number(config, "dim"), _number(config, "n_heads")
    axes = config.get("axes_dims") or []
    assert isinstance(axes, list | tuple)
    wanted = [width // heads * part // 8 for part in ROPE_EIGHTHS]
    if width % heads or config["n_kv_heads"] != heads or list(axes) != wanted:
        raise UnsupportedModelError(
            f"{label}: {heads} heads, {config['n_kv_heads']} of keys, do not go with width {width} "
            f"and axes_dims {list(axes)}; expected as many heads of keys and {wanted}."
        )


FAMILY = base.Family(
    name=NAME,
    label=LABEL,
    short_label=LABEL,
    detection=base.DetectionFacts(
        matches=_matches,
        describe=_describe,
        input_layer=INPUT_LAYER,
        matches_folder=lambda config, pipeline: config.get("_class_name") == FOLDER_CLASS,
        describe_folder=lambda config: {"title": LABEL},
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
        guidance_scale=4.0,
        resolution=1024,
        resolution_multiple=16,
    ),
    text=base.TextFacts(
        groups=(base.EncoderGroup(("qwen3",)),),
        prefixes={
            "qwen3": (
                "text_encoders.qwen3_4b.transformer.model.",
                "cond_stage_model.qwen3_4b.transformer.model.",
            ),
        },
        context_width="cap_feat_dim",
        hidden_layer=2,
        template="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        masked=True,
        published={"qwen3": "qwen_3_4b.safetensors"},
    ),
    vae=VAE,
    lora=base.LoraFacts(
        modules=_lora_modules,
        fused=True,  # no alpha
        dotted=True,
        split=True,  # all hosts and diffusers read q, k and v apart
        peft_prefix="transformer.",
        names=r"^(layers|noise_refiner|context_refiner)_\d+_(attention|feed_forward|adaLN_)",
        base_model_version="zimage",
        declared=("zimage", "z-image", "z_image"),
        relatives={"lumina": "Lumina"},
        architecture=lambda config: "z-image/lora",
    ),
    sharing=base.SharingFacts(
        labels=("ZImageBase", "ZImageTurbo", "Other"),
        label_note=lambda title: (
            "Z-Image-Turbo has the same tensors: of a checkpoint made from it, choose ZImageTurbo."
        ),
        tag="z-image",
        base_model=lambda title: base.BaseModel(
            "Tongyi-MAI/Z-Image",
            "Apache License 2.0",
            "apache-2.0",
            "https://huggingface.co/Tongyi-MAI/Z-Image",
        ),
        pipeline="ZImagePipeline",
        from_single_file=False,
        comfy_reads_peft=True,
        clip_types=("lumina2",),
        empty_latent="EmptySD3LatentImage",
        shift_node="ModelSamplingAuraFlow",
        bare_loader="UNETLoader",
        published_vae="ae.safetensors",
        webui_limits=lambda title: " Of A1111's family, Forge Neo alone knows Z-Image.",
    ),
    hosts=base.HostFacts("Lumina2", {"dim": WIDTH}, webui_class="ZImage"),
    cost=base.CostFacts(
        parameters=6_154_908_736,
        packed=0.998,
        staying=12e6,
        buffers=78.7e6,
        per_rank={"attention": 2_188_800, "full": 2_657_280},
        per_image={"attention": 1060e6, "full": 1179e6},
        per_pixel={"attention": 32250.0, "full": 35850.0},
        chained=1230.0,
        recomputed=base.Recomputed(per_image=100e6, per_pixel=1262.0, kept=1024.0),
    ),
)

"""Anima: Cosmos-Predict2's transformer as a flow, told of prompts by Qwen3 and an adapter."""

from collections.abc import Iterator

from ..errors import UnsupportedModelError
from . import base

NAME = "anima"
LABEL = "Anima"
INPUT_LAYER = "x_embedder.proj.1.weight"
ADAPTER = "llm_adapter."
LATENT_CHANNELS, PATCH = 16, 2
PLACES = ("net.", "model.diffusion_model.", "diffusion_model.", "model.model.", "")
"""Where the transformer lies in files: the official one's name first."""

# latent = (vae_latent - mean) / deviation: the statistics of Wan 2.1's VAE, which Qwen-Image took
# over (latents_mean and latents_std of its published config).
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
DEVIATION = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
VAE = base.VaeFacts(
    scaling_factor=tuple(1 / value for value in DEVIATION),
    shift_factor=MEAN,
    # A least-squares fit of decoded pixels on latents, as ComfyUI's previews have it.
    rgb_factors=(
        (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747),
        (0.0372, 0.2344, 0.1420), (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665),
        (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975), (-0.0412, 0.0267, -0.1364),
        (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
        (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950),
        (0.1984, 0.0913, 0.1861),
    ),
    rgb_bias=(-0.1835, -0.0868, -0.3360),
    kind="wan",
)  # fmt: skip

LICENSE_TERMS = (
    "The base model's licence is for non-commercial use and counts a LoRA as made from it: it is "
    "shared under the same licence, with a copy of its text. Images may be used commercially."
)
TOP_LEVEL = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}
SUBLAYERS = {"1": "self_attn", "2": "cross_attn", "3": "mlp"}
"""What a block's norm of that number stands before."""
INNER = {
    **{
        f"norm{number}.linear_{half}": f"adaln_modulation_{name}.{half}"
        for number, name in SUBLAYERS.items()
        for half in "12"
    },
    **{
        f"attn{number}.{ours}": f"{SUBLAYERS[number]}.{theirs}"
        for number in "12"
        for ours, theirs in (
            ("to_q", "q_proj"),
            ("to_k", "k_proj"),
            ("to_v", "v_proj"),
            ("to_out.0", "output_proj"),
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
        )
    },
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}
PROJECTIONS = tuple(
    name for name in INNER if name.startswith(("attn", "ff")) and "norm" not in name
)
MODULATION = tuple(name for name in INNER if name.startswith("norm"))


def _matches(tensors: base.Tensors) -> bool:
    """With the adapter: without it, the same transformer is Cosmos-Predict2."""
    return (
        "blocks.0.mlp.layer1.weight" in tensors
        and f"{ADAPTER}blocks.0.cross_attn.q_proj.weight" in tensors
    )


def _describe(tensors: base.Tensors, everything: base.Tensors) -> dict[str, object]:
    return {"title": LABEL, "prediction": "flow", "latent_channels": LATENT_CHANNELS}


def _network_config(tensors: base.Tensors) -> base.Config:
    width, columns = tensors[INPUT_LAYER].shape
    head = tensors["blocks.0.self_attn.q_norm.weight"].shape[0]
    inner = tensors["blocks.0.mlp.layer1.weight"].shape[0]
    channels = columns // PATCH**2
    if channels != LATENT_CHANNELS + 1:  # and the mask of what is padding
        raise UnsupportedModelError(
            f"This transformer of {LABEL}'s kind takes {channels - 1} input channels, where "
            f"{LATENT_CHANNELS} are expected: it makes videos of images, or is another variant, "
            "which is not supported. Give the ordinary model."
        )
    if width % head or inner % width:
        raise UnsupportedModelError(
            f"This transformer has width {width}, heads of {head} and a feed-forward layer of "
            f"{inner}; the width must be a multiple of the heads' and divide the layer's."
        )
    return {
        "in_channels": channels,
        "out_channels": tensors["final_layer.linear.weight"].shape[0] // PATCH**2,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": base.count_blocks(tensors, "blocks."),
        "mlp_ratio": inner // width,
        "text_embed_dim": tensors["blocks.0.cross_attn.k_proj.weight"].shape[1],
        "adaln_lora_dim": tensors["blocks.0.adaln_modulation_self_attn.1.weight"].shape[0],
    }


def _module_source(module: str) -> str:
    if module in TOP_LEVEL:
        return TOP_LEVEL[module]
    _, index, inner = module.split(".", 2)
    return f"blocks.{index}.{INNER[inner]}"


def _tensor_source(parameter_name: str, config: base.Config) -> base.TensorSource:
    module, _, leaf = parameter_name.rpartition(".")
    return base.TensorSource(f"{_module_source(module)}.{leaf}")


def _number(config: base.Config, name: str) -> int:
    return int(str(config[name]))


def _parameters(config: base.Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter of the transformer and its shape, by diffusers' name."""
    head, rank = _number(config, "attention_head_dim"), _number(config, "adaln_lora_dim")
    width, text = head * _number(config, "num_attention_heads"), _number(config, "text_embed_dim")
    inner = width * _number(config, "mlp_ratio")
    top = {
        "patch_embed.proj": (width, _number(config, "in_channels") * PATCH**2),
        "time_embed.t_embedder.linear_1": (width, width),
        "time_embed.t_embedder.linear_2": (3 * width, width),
        "time_embed.norm": (width,),
        "norm_out.linear_1": (rank, width),
        "norm_out.linear_2": (2 * width, rank),
        "proj_out": (_number(config, "out_channels") * PATCH**2, width),
    }
    block: dict[str, tuple[int, ...]] = {"ff.net.0.proj": (inner, width)}
    block["ff.net.2"] = (width, inner)
    for number in SUBLAYERS:
        block[f"norm{number}.linear_1"] = (rank, width)
        block[f"norm{number}.linear_2"] = (3 * width, rank)
    for number, source in (("1", width), ("2", text)):
        block |= {f"attn{number}.norm_{name}": (head,) for name in "qk"}
        block |= {f"attn{number}.to_{name}": (width, source) for name in "kv"}
        block |= {f"attn{number}.{name}": (width, width) for name in ("to_q", "to_out.0")}
    for name, shape in top.items():
        yield f"{name}.weight", shape
    for index in range(_number(config, "num_layers")):
        for name, shape in block.items():
            yield f"transformer_blocks.{index}.{name}.weight", shape


def _lora_modules(config: base.Config, targets: base.LoraTargets) -> list[str]:
    """ "attention" takes attention and feed-forward layers, "full" adds their modulation."""
    inner = PROJECTIONS + (MODULATION if targets == "full" else ())
    depth = _number(config, "num_layers")
    return [f"transformer_blocks.{index}.{name}" for index in range(depth) for name in inner]


FAMILY = base.Family(
    name=NAME,
    label=LABEL,
    short_label=LABEL,
    detection=base.DetectionFacts(
        matches=_matches,
        describe=_describe,
        input_layer=INPUT_LAYER,
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
        groups=(base.EncoderGroup(("qwen3", "llm_adapter"), chained=True),),
        prefixes={
            "qwen3": (
                "cond_stage_model.qwen3_06b.transformer.model.",
                "text_encoders.qwen3_06b.transformer.model.",
            ),
            "llm_adapter": tuple(place + ADAPTER for place in PLACES),
        },
        context_width="text_embed_dim",
        hidden_layer=1,
        final_norm=True,
        masked=True,
        published={"qwen3": "qwen_3_06b_base.safetensors"},
    ),
    vae=VAE,
    lora=base.LoraFacts(
        modules=_lora_modules,
        module_name=lambda module, config: _module_source(module),
        fused=True,  # diffusers' loader fails on an alpha
        dotted=True,
        peft_prefix="transformer.",
        names=(
            r"^(blocks_\d+_((self|cross)_attn_(q|k|v|output)_proj|mlp_layer[12]|adaln_modulation_)"
            r"|transformer_blocks_\d+_(attn1_|norm[123]_linear_[12]$))"
        ),
        base_model_version="anima",
        declared=("anima",),
        relatives={"cosmos": "Cosmos-Predict2"},
        architecture=lambda config: "anima/lora",
    ),
    sharing=base.SharingFacts(
        labels=("Anima", "Other"),
        label_note=lambda title: LICENSE_TERMS,
        license_terms=LICENSE_TERMS,
        tag=NAME,
        base_model=lambda title: base.BaseModel(
            "circlestone-labs/Anima",
            "CircleStone Labs Non-Commercial License",
            "circlestone-labs-non-commercial-license",
            "https://huggingface.co/circlestone-labs/Anima/blob/main/LICENSE.md",
        ),
        pipeline="AnimaModularPipeline",
        from_single_file=False,
        clip_types=("stable_diffusion",),  # the encoder is known by its shapes
        empty_latent="EmptySD3LatentImage",
        shift_node="ModelSamplingAuraFlow",
        bare_loader="UNETLoader",
        published_vae="qwen_image_vae.safetensors",
        webui_limits=lambda title: " Of A1111's family, Forge Neo alone knows Anima.",
    ),
    hosts=base.HostFacts("Anima", webui_class="Anima"),
    cost=base.CostFacts(
        parameters=1_956_405_248,
        packed=0.990,
        staying=18.6e6,
        buffers=33.6e6,
        per_rank={"attention": 1_433_600, "full": 2_164_736},
        per_image={"attention": 297e6, "full": 277e6},
        per_pixel={"attention": 13570.0, "full": 16260.0},
        recomputed=base.Recomputed(per_image=24e6, per_pixel=628.5, kept=510.0),
    ),
)

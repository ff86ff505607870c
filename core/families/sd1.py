"""Stable Diffusion 1.x: a UNet with 768-wide CLIP-L context, eps prediction (v by setting)."""

from . import base, unet

LABEL = "SD 1.x"
NUM_HEADS = 8
SD2_CONTEXT = 1024

VAE = base.VaeFacts(
    scaling_factor=0.18215,
    shift_factor=0.0,
    # A least-squares fit of decoded pixels on latents, published with InvokeAI's previews.
    rgb_factors=(
        (0.34, 0.14, 0.07),
        (0.12, 0.40, 0.15),
        (-0.32, 0.25, 0.21),
        (-0.13, -0.19, -0.74),
    ),
)


def _matches(tensors: base.Tensors) -> bool:
    return (
        unet.is_unet(tensors)
        and "label_emb.0.0.weight" not in tensors
        and unet.context_width(tensors) != SD2_CONTEXT
    )


def _matches_folder(config: base.Config, pipeline: str) -> bool:
    return (
        unet.is_unet_folder(config, pipeline)
        and config.get("addition_embed_type") is None
        and config.get("cross_attention_dim") != SD2_CONTEXT
    )


FAMILY = base.Family(
    name="sd1",
    label=LABEL,
    short_label=LABEL,
    detection=base.DetectionFacts(
        matches=_matches,
        describe=lambda tensors, everything: {"title": LABEL, "prediction": "eps"},
        input_layer=unet.INPUT_LAYER,
        matches_folder=_matches_folder,
        describe_folder=lambda config: {"title": LABEL},
        check_folder=unet.check_folder,
    ),
    layout=base.LayoutFacts(
        network_config=lambda tensors: unet.unet_config(
            tensors, heads=lambda channels: NUM_HEADS, sample_size=64
        ),
        tensor_source=unet.tensor_source,
        parameters=unet.parameters,
        denoiser_folder="unet",
        denoiser_title="UNet",
    ),
    sampling=base.SamplingFacts(
        schedule="vp",
        predictions=("eps", "v"),
        guidance_scale=7.5,
        resolution=512,
        resolution_multiple=8,
    ),
    text=base.TextFacts(
        groups=(base.EncoderGroup(("clip_l",)),),
        # the second place is where Forge saves it
        prefixes={
            "clip_l": ("cond_stage_model.transformer.", "text_encoders.clip_l.transformer."),
        },
        context_width="cross_attention_dim",
        clip_skip=True,
        final_norm=True,
        repeatable=True,
    ),
    vae=VAE,
    lora=base.LoraFacts(
        modules=unet.lora_modules,
        peft_prefix="unet.",
        context_width=768,
        # it alone attends in its first blocks
        likely_names=r"^(input_blocks_[12]_1|down_blocks_0_attentions)_",
        base_model_version="sd_v1",
        declared=("sd_v1",),
        architecture=lambda config: "stable-diffusion-v1/lora",
    ),
    sharing=base.SharingFacts(
        labels=("SD 1.5", "SD 1.4", "SD 1.5 LCM", "SD 1.5 Hyper", "Other"),
        label_note=lambda title: (
            "Any SD 1.x checkpoint is listed under SD 1.5, unless it descends from SD 1.4."
        ),
        base_model=lambda title: base.BaseModel(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "CreativeML OpenRAIL-M",
            "creativeml-openrail-m",
            "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        ),
        base_title=lambda title: "Stable Diffusion 1.x",
        pipeline="StableDiffusionPipeline",
        webui_version="SD1",
        clip_types=("stable_diffusion",),
    ),
    hosts=base.HostFacts("BaseModel", {"context_dim": 768, "adm_in_channels": None}),
    cost=base.CostFacts(
        parameters=859_520_964,
        packed=0.908,
        staying=2.6e6,
        buffers=59e6,
        per_rank={"attention": 423_936, "full": 1_050_816},
        per_image={"attention": 2.6e6, "full": 4.2e6},
        per_pixel={"attention": 4579.0, "full": 4680.0},
        recomputed=base.Recomputed(per_image=18.5e6, per_pixel=243.0, kept=998.0),
    ),
)

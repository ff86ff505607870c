"""SDXL: a UNet with CLIP-L + CLIP-G context and size conditioning.

It predicts eps, v (marked by a key), or flow: fine-tunes as rectified flows, such as ChenkinNoob RF
and bigASP 2.5, have the same tensors and no marker. Shift 3 is what ComfyUI's ModelSamplingSD3, the
node that they are sampled with, has as its default; their authors recommend 3 to 8.
"""

from ..errors import UnsupportedModelError
from . import base, unet
from .parts.config_values import Rule, check_config, is_whole, one_of

LABEL = "SDXL"
HEAD_WIDTH = 64
TIME_ID_WIDTH, TIME_IDS = 256, 6
REFINER_INPUTS = 2560
SIZE_RULES = {
    "addition_time_embed_dim": Rule(one_of(TIME_ID_WIDTH), "256", required=True),
    "projection_class_embeddings_input_dim": Rule(
        lambda value: is_whole(value) and int(str(value)) > TIME_IDS * TIME_ID_WIDTH,
        "a whole number above 1536",
        required=True,
    ),
}

VAE = base.VaeFacts(
    scaling_factor=0.13025,
    shift_factor=0.0,
    # A least-squares fit of decoded pixels on latents, published with InvokeAI's previews.
    rgb_factors=(
        (0.38, 0.49, 0.53),
        (-0.38, 0.16, 0.17),
        (0.18, 0.36, -0.20),
        (-0.44, -0.26, -0.43),
    ),
)


def _describe(tensors: base.Tensors, everything: base.Tensors) -> dict[str, object]:
    predicts_v = "v_pred" in everything
    return {
        "title": LABEL,
        "prediction": "v" if predicts_v else "eps",
        "zero_terminal_snr": predicts_v and "ztsnr" in everything,
    }


def _network_config(tensors: base.Tensors) -> base.Config:
    config = unet.unet_config(
        tensors,
        heads=lambda channels: [max(1, width // HEAD_WIDTH) for width in channels],
        sample_size=128,
    )
    config["addition_embed_type"] = "text_time"
    config["addition_time_embed_dim"] = TIME_ID_WIDTH
    config["projection_class_embeddings_input_dim"] = tensors["label_emb.0.0.weight"].shape[1]
    return config


def _matches_folder(config: base.Config, pipeline: str) -> bool:
    return (
        unet.is_unet_folder(config, pipeline) and config.get("addition_embed_type") == "text_time"
    )


def _pooled_input(config: base.Config) -> int:
    inputs = int(str(config["projection_class_embeddings_input_dim"]))
    return inputs - TIME_IDS * TIME_ID_WIDTH


def _check_folder(config: base.Config, label: str) -> None:
    if config.get("projection_class_embeddings_input_dim") == REFINER_INPUTS:
        raise UnsupportedModelError(f"{label}: this is the SDXL refiner; use the SDXL base model.")
    unet.check_folder(config, label)
    check_config(config, SIZE_RULES, label)


FAMILY = base.Family(
    name="sdxl",
    label=LABEL,
    short_label=LABEL,
    detection=base.DetectionFacts(
        matches=lambda tensors: unet.is_unet(tensors) and "label_emb.0.0.weight" in tensors,
        describe=_describe,
        input_layer=unet.INPUT_LAYER,
        matches_folder=_matches_folder,
        describe_folder=lambda config: {"title": LABEL},
        check_folder=_check_folder,
    ),
    layout=base.LayoutFacts(
        network_config=_network_config,
        tensor_source=unet.tensor_source,
        parameters=unet.parameters,
        denoiser_folder="unet",
        denoiser_title="UNet",
    ),
    sampling=base.SamplingFacts(
        schedule="vp",
        predictions=("eps", "v", "flow"),
        flow_shift=3.0,
        guidance_scale=7.0,
        resolution=1024,
        resolution_multiple=8,
    ),
    text=base.TextFacts(
        groups=(base.EncoderGroup(("clip_l", "clip_g")),),
        prefixes={
            # the second place is where Forge saves it
            "clip_l": ("conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer."),
            "clip_g": ("conditioner.embedders.1.model.", "text_encoders.clip_g.transformer."),
        },
        context_width="cross_attention_dim",
        pooled_kinds=("clip_g",),
        pooled_input=_pooled_input,
        repeatable=True,
    ),
    vae=VAE,
    lora=base.LoraFacts(
        modules=unet.lora_modules,
        module_name=unet.ldm_name,
        peft_prefix="unet.",
        context_width=2048,
        likely_names=r"_transformer_blocks_[2-9]_",  # it alone stacks transformer blocks
        # without a beginning of "sdxl_" here, A1111 lists an SDXL LoRA under SD 1
        base_model_version="sdxl_base_v1-0",
        declared=("sdxl_",),
        architecture=lambda config: "stable-diffusion-xl-v1-base/lora",
    ),
    sharing=base.SharingFacts(
        labels=("SDXL 1.0", "Pony", "Illustrious", "NoobAI", "SDXL Lightning", "SDXL Hyper",
                "Other"),
        label_note=lambda title: (
            "Pony, Illustrious and NoobAI checkpoints have the same tensor names and shapes as "
            "SDXL 1.0, so they cannot be told apart by the file. If yours is one of them, choose "
            "its label: --base-model Pony, Illustrious or NoobAI."
        ),
        base_model=lambda title: base.BaseModel(
            "stabilityai/stable-diffusion-xl-base-1.0",
            "CreativeML Open RAIL++-M",
            "creativeml-openrail-plus-plus-m",
            "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
        ),
        base_title=lambda title: "SDXL 1.0",
        pipeline="StableDiffusionXLPipeline",
        webui_version="SDXL",
        clip_types=("stable_diffusion", "sdxl"),
    ),
    hosts=base.HostFacts("SDXL"),
    cost=base.CostFacts(
        parameters=2_567_463_684, packed=0.981, staying=9e6, buffers=59e6,
        per_rank={"attention": 2_659_840, "full": 3_074_240},
        per_image={"attention": 134e6, "full": 0.5e6},
        per_pixel={"attention": 7125.0, "full": 7488.0},
        recomputed=base.Recomputed(per_image=92e6, per_pixel=289.0, kept=668.0),
    ),
)  # fmt: skip

"""Where the parameters of text encoders and VAEs lie in files of the A1111/ComfyUI layout.

Each function takes a parameter name of the transformers or diffusers module and says which tensor
of the file holds its value.
"""

from collections.abc import Callable, Mapping

from ...core.families import TensorSource
from ...core.files.tensor_file import TensorInfo

Source = Callable[[str], TensorSource]

OPENCLIP_TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
VAE_TOP = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def clip_source(infos: Mapping[str, TensorInfo]) -> Source:
    """For CLIP encoders stored under transformers' names.

    transformers 5.6 dropped `text_model.` from CLIPTextModel's own names, and a few old files lack
    it too, so the prefix is taken from the file.
    """
    prefix = "text_model." if any(key.startswith("text_model.") for key in infos) else ""

    def source(name: str) -> TensorSource:
        if name.startswith("text_projection."):
            return TensorSource(name)
        return TensorSource(prefix + name.removeprefix("text_model."))

    return source


def openclip_source(name: str) -> TensorSource:
    """For CLIP-G as SDXL files hold it: OpenCLIP's names, fused q/k/v, transposed projection."""
    if name == "text_projection.weight":
        return TensorSource("text_projection", change="transpose")
    name = name if name.startswith("text_model.") else f"text_model.{name}"
    if name in OPENCLIP_TOP:
        return TensorSource(OPENCLIP_TOP[name])
    _, _, _, index, inner = name.split(".", 4)
    module, _, leaf = inner.rpartition(".")
    block = f"transformer.resblocks.{index}"
    if module in OPENCLIP_LAYER:
        return TensorSource(f"{block}.{OPENCLIP_LAYER[module]}.{leaf}")
    part = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(module)
    return TensorSource(f"{block}.attn.in_proj_{leaf}", part)


def vae_source(num_levels: int) -> Source:
    """For the decoder of a KL VAE under LDM names, which count the levels from the other end."""

    def source(name: str) -> TensorSource:
        module, _, leaf = name.rpartition(".")
        if module == "post_quant_conv":
            return TensorSource(name)
        inner = module.removeprefix("decoder.")
        attention = inner.removeprefix("mid_block.attentions.0.")
        if attention != inner:
            change = "squeeze" if attention != "group_norm" and leaf == "weight" else "none"
            return TensorSource(
                f"decoder.mid.attn_1.{VAE_ATTENTION[attention]}.{leaf}", None, change
            )
        return TensorSource(f"decoder.{_vae_module(inner, num_levels)}.{leaf}")

    return source


def _vae_module(inner: str, num_levels: int) -> str:
    for ours, ldm in VAE_TOP.items():
        if inner == ours or inner.startswith(ours + "."):
            return (ldm + inner[len(ours) :]).replace("conv_shortcut", "nin_shortcut")
    _, level, kind, index, rest = inner.split(".", 4)
    side = f"up.{num_levels - 1 - int(level)}"
    if kind == "upsamplers":
        return f"{side}.upsample.{rest}"
    return f"{side}.block.{index}.{rest}".replace("conv_shortcut", "nin_shortcut")

"""The embedded teachers in ComfyUI: their network and VAE by core's loader, their text encoder."""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.errors import SettingsError
from ...core.families import ENCODER_PLACE
from . import running
from .models import Model

log = logging.getLogger("dpdmd_studio.comfyui")
TOKEN_IDS = "dpdmd_text_encoder.token_ids"
END, CLIP_TOKENS = 49407, 49408
HEAD_WIDTH, SIDE = 32, 64
CONTEXT, POOLED = 4096, 2048
"""Widths that SD3 reads; zeros fill up the encoder's own."""


def load(path: Path) -> tuple[Model, Any, Any]:
    """MODEL, CLIP and VAE of an embedded teacher in SD3's layout."""
    import comfy.sd

    found = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=False)
    model = found[0]
    model.set_model_unet_function_wrapper(_at_its_size)
    return model, _clip(load_file(path)), found[2]


def _at_its_size(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
    """The network's call, refused at sizes that it cannot draw."""
    latents = arguments["input"]
    height, width = latents.shape[-2:]
    if (height, width) != (SIDE // 8, SIDE // 8):
        raise SettingsError(
            f"The demo checkpoint draws {SIDE} x {SIDE} pixels alone, and the latent image is "
            f"{8 * width} x {8 * height}. Set width and height of the empty latent to {SIDE}."
        )
    return apply_model(latents, arguments["timestep"], **arguments["c"])


def encoder_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder as a CLIP with all tokens: those that it does not know share the unknown row."""
    weights = {
        key.removeprefix(ENCODER_PLACE): value.float()
        for key, value in tensors.items()
        if key.startswith(ENCODER_PLACE)
    }
    name = "text_model.embeddings.token_embedding.weight"
    own, ids = weights[name], tensors[TOKEN_IDS]
    weights[name] = own[:1].repeat(CLIP_TOKENS, 1)
    weights[name][ids[1:]] = own[1:]
    return weights


def _clip(tensors: dict[str, Tensor]) -> Any:
    """A CLIP of the host's own class, so that every node that takes one takes this."""
    import comfy.sd
    from comfy import sd1_clip
    from comfy.supported_models_base import ClipTarget

    weights = encoder_weights(tensors)
    known = set(tensors[TOKEN_IDS].tolist())
    length, width = weights["text_model.embeddings.position_embedding.weight"].shape
    layers = sum(name.endswith("layer_norm1.weight") for name in weights)
    config = {
        "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width,
        "num_attention_heads": width // HEAD_WIDTH, "hidden_act": "quick_gelu",
        "max_position_embeddings": length, "eos_token_id": END,
    }  # fmt: skip

    class Tokenizer(sd1_clip.SD1Tokenizer):
        """CLIP's tokens, as many as the encoder reads; a log line names what means nothing."""

        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            def own(**options: Any) -> Any:
                return sd1_clip.SDTokenizer(max_length=length, embedding_size=width, **options)

            super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=own)

        def tokenize_with_weights(
            self, text: str, return_word_ids: bool = False, **kwargs: Any
        ) -> dict[str, list[Any]]:
            found = super().tokenize_with_weights(text, return_word_ids, **kwargs)
            _say(self.clip_l.tokenizer, known, text, sum(map(len, found.values())) > 1)
            return {name: batches[:1] for name, batches in found.items()}

    class Encoder(sd1_clip.SDClipModel):
        def __init__(
            self, device: Any = "cpu", dtype: Any = None, model_options: Any = None
        ) -> None:
            super().__init__(
                device=device, dtype=dtype, max_length=length, textmodel_json_config=config,
                return_projected_pooled=False, model_options=model_options or {},
            )  # fmt: skip

    class Padded(sd1_clip.SD1ClipModel):
        """Text features filled up with zeros to what SD3's network reads."""

        def __init__(
            self, device: Any = "cpu", dtype: Any = None, model_options: Any = None
        ) -> None:
            super().__init__(device, dtype, model_options or {}, clip_model=Encoder)

        def encode_token_weights(self, token_weight_pairs: Any) -> tuple[Tensor, Tensor]:
            context, pooled = super().encode_token_weights(token_weight_pairs)[:2]
            pad = nn.functional.pad
            return pad(context, (0, CONTEXT - width)), pad(pooled, (0, POOLED - width))

    target = ClipTarget(Tokenizer, Padded)
    options = {"dtype": torch.float32}
    return comfy.sd.CLIP(target, parameters=0, state_dict=[weights], model_options=options)


def _say(tokenizer: Any, known: set[int], text: str, too_long: bool) -> None:
    """Name the words that the encoder does not know, on the node that asks and in the log."""
    unknown = [
        word
        for word in dict.fromkeys(re.findall(r"[^\W\d_]+", text.lower()))
        if any(token not in known for token in tokenizer(word)["input_ids"])
    ]
    said = [f"The demo checkpoint does not know: {', '.join(unknown)}."] if unknown else []
    if too_long:
        said.append("The prompt is longer than the demo checkpoint reads; its end is left out.")
    if said:
        log.warning("%s", " ".join(said))
        running.notify(running.executing_node(), " ".join(said))

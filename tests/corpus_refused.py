"""Inputs that none reads, made from the corpus: what each is, and words of its refusal."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import torch
from checkpoints import State, save, save_folder
from corpus import DENOISER, UNET, VAE, each_file, renamed, sharded, tiny, vae_state


@dataclass(frozen=True)
class Refused:
    """How to make an input that cannot be used, from a family's tensors; the message's pattern."""

    make: Callable[[Path, State], Path]
    words: str
    name: str = "sd1"


def _file(change: Callable[[State], State]) -> Callable[[Path, State], Path]:
    return lambda folder, state: save(folder / "x.safetensors", change(state))


def _bytes(change: Callable[[bytes], bytes], name: str = "x.safetensors"):
    def make(folder: Path, state: State) -> Path:
        path = save(folder / "whole.safetensors", state)
        content = change(path.read_bytes())
        path.unlink()
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _header(change: Callable[[dict], None], tail: bytes = b"") -> Callable[[Path, State], Path]:
    def changed(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :] + tail

    return _bytes(changed)


def _folder(name: str, change: Callable[[Path], None]) -> Callable[[Path, State], Path]:
    def make(folder: Path, state: State) -> Path:
        made = save_folder(folder / "model", tiny(name))
        change(made)
        return made

    return make


def config(part: str, **entries: object) -> Callable[[Path], None]:
    """Sets entries of a sub-folder's config."""

    def change(folder: Path) -> None:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        path = folder / part / name
        path.parent.mkdir(exist_ok=True)
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(known | entries))

    return change


def _without(pattern: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if not re.search(pattern, k)}


def _with(**tensors: torch.Tensor) -> Callable[[State], State]:
    return lambda state: state | {k.replace("__", "."): v for k, v in tensors.items()}


def _set(pattern: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda state: {k: change(v) if re.search(pattern, k) else v for k, v in state.items()}


def _swapped(folder: Path) -> None:
    (folder / "text_encoder").rename(folder / "aside")
    (folder / "text_encoder_2").rename(folder / "text_encoder")
    (folder / "aside").rename(folder / "text_encoder_2")


def _one_shard(folder: Path) -> None:
    sharded()(folder)
    (folder / "unet" / f"{UNET}-00002-of-00002.safetensors").unlink()


def _shared(header: dict) -> None:
    header["zzz"] = header[next(key for key in header if key != "__metadata__")]


def _diffusers_file(state: State) -> State:
    return dict(tiny("sdxl").denoiser.state_dict())


def _edge(state: State) -> State:
    return renamed(state, (f"^{DENOISER}", "model_ema."))


def _qwen3() -> State:
    return {f"model.{k}": v for k, v in tiny("zimage").encoders["qwen3"].state_dict().items()}


def _nunchaku(state: State) -> State:
    """As SVDQuant stores a layer: whole numbers of four bits, their scales, a part of low rank."""
    found = dict(state)
    for key in [name for name in state if name.endswith("attention.qkv.weight")]:
        place, rows = key.removesuffix("weight"), len(found.pop(key))
        found |= {
            f"{place}qweight": torch.zeros(rows, 32, dtype=torch.int8),
            f"{place}wscales": torch.ones(1, rows),
            f"{place}proj_down": torch.ones(64, 8),
            f"{place}proj_up": torch.ones(rows, 8),
        }
    return found


def _anima_diffusers(folder: Path) -> Path:
    """As diffusers' modular pipeline keeps it."""
    made = tiny("anima")
    parts = {"transformer": made.denoiser, "text_conditioner": made.encoders["llm_adapter"],
             "text_encoder": made.encoders["qwen3"]}  # fmt: skip
    for name, module in parts.items():
        module.save_pretrained(folder / name)  # type: ignore[operator]
    config("transformer", _class_name="CosmosTransformer3DModel")(folder)
    index = {"_class_name": "AnimaModularPipeline"}
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    return folder


Q = "lora_unet_mid_block_attentions_0_proj_in"
LORA = {f"{Q}.lora_down.weight": torch.ones(2, 64), f"{Q}.lora_up.weight": torch.ones(64, 2)}
REFUSED = {
    "EMA alone": Refused(_file(_edge), "holds the EMA copy of its denoiser alone"),
    "a LoRA": Refused(_file(lambda state: LORA), "is a LoRA"),
    "a VAE": Refused(_file(lambda state: {k: v for k, v in state.items() if k.startswith(VAE)}),
                     "holds a VAE but no denoiser"),
    "a text encoder": Refused(_file(lambda state: checkpoints.clip_names(checkpoints.clip(32))),
                              "holds a text encoder but no denoiser"),
    "a ControlNet": Refused(
        _file(lambda state: {"control_model.input_hint_block.0.weight": torch.ones(2)}),
        "is a ControlNet"),
    "a UNet under diffusers' names": Refused(_file(_diffusers_file), "without its folder", "sdxl"),
    "Flux": Refused(_file(lambda state: {
        f"{DENOISER}double_blocks.0.img_attn.norm.key_norm.weight": torch.ones(2)}), "is Flux"),
    "inpainting": Refused(_file(_set(r"input_blocks\.0\.0\.weight",
                                     lambda v: torch.cat([v, v, v], 1)[:, :9])), "inpainting"),
    "InstructPix2Pix": Refused(_file(_set(r"input_blocks\.0\.0\.weight",
                                          lambda v: torch.cat([v, v], 1))), "image-editing"),
    "SD 2": Refused(_file(_set(r"attn2\.to_[kv]\.weight", lambda v: torch.ones(len(v), 1024))),
                    "SD 2.x"),
    "Qwen3": Refused(
        _file(lambda state: _qwen3()), "holds a text encoder but no denoiser", "anima"),
    "Wan's VAE": Refused(
        _file(lambda state: vae_state("anima")), "holds a VAE but no denoiser", "anima"),
    "Wan's VAE under diffusers' names": Refused(
        _file(lambda state: dict(tiny("anima").vae.state_dict())),  # type: ignore[union-attr]
        "holds a VAE but no denoiser", "anima"),
    "Cosmos-Predict2": Refused(_file(_without("llm_adapter")), "Cosmos", "anima"),
    "half an Anima": Refused(
        _file(_without(r"blocks\.1\.cross_attn")), "transformer lacks", "anima"),
    "half an adapter": Refused(_file(_without(r"llm_adapter\.blocks\.0\.norm")), "adapter lacks",
                               "anima"),
    "half a Qwen3": Refused(_file(_without(r"layers\.1\.mlp\.up_proj")), "encoder lacks", "zimage"),
    "Z-Image Omni": Refused(
        _file(_with(model__diffusion_model__siglip_embedder__0__weight=torch.ones(2))), "Omni",
        "zimage"),
    "Z-Image by Nunchaku": Refused(_file(_nunchaku), "quantised weights", "zimage"),
    "Z-Image's transformer under diffusers' names": Refused(
        _file(lambda state: dict(tiny("zimage").denoiser.state_dict())), "without its folder",
        "zimage"),
    "Anima's transformer under diffusers' names": Refused(
        _file(lambda state: dict(tiny("anima").denoiser.state_dict())), "without its folder",
        "anima"),
    "folder of Anima": Refused(
        lambda folder, state: _anima_diffusers(folder / "model"), "a modular pipeline", "anima"),
    "folder of Z-Image Omni": Refused(
        _folder("zimage", config("transformer", siglip_feat_dim=8)), "Omni", "zimage"),
    "EDM": Refused(_file(_with(edm_mean=torch.ones(4))), "EDM", "sdxl"),
    "LCM": Refused(_file(_with(model__diffusion_model__time_embed__cond_proj__weight=torch.ones(2)
                               )), "LCM"),
    "scaled fp8": Refused(_file(_with(model__diffusion_model__out__2__scale_weight=torch.ones(1))),
                          "quantised weights"),
    "nf4": Refused(_file(_with(model__diffusion_model__out__2__weight__absmax=torch.ones(1))),
                   "quantised weights", "sdxl"),
    "whole numbers": Refused(
        _file(_set(r"time_embed\.0\.weight", lambda v: v.to(torch.int8))), "stored as I8"),
    "a denoiser's tensor missing": Refused(
        _file(_without(r"output_blocks\.0\.0\.in_layers\.2\.bias")), "the UNet lacks 1 tensor"),
    "half a denoiser": Refused(
        _file(_without("joint_blocks.1.x_block")), "transformer lacks", "sd3"),
    "a misshaped tensor": Refused(
        _file(_set(r"time_embed\.2\.bias", lambda v: v[1:])),
        r"\(127,\), expected \(128,\)"),
    "a tensor of nothing": Refused(
        _file(_set(r"out\.2\.bias", lambda v: v[:0])), "holds nothing"),
    "a tensor without axes": Refused(
        _file(_set(r"input_blocks\.0\.0\.weight", lambda v: v[0, 0, 0, 0])),
        "wrong number of axes"),
    "an encoder's tensor missing": Refused(
        _file(_without(r"encoder\.layers\.1\.layer_norm1\.bias")), "encoder lacks 1 tensor"),
    "an encoder's tensor misshaped": Refused(
        _file(_set(r"resblocks\.1\.attn\.in_proj_weight", lambda v: v[1:])), "has shape", "sdxl"),
    "T5 without a gate": Refused(_file(_without(r"t5xxl.*wi_1")), "T5 text encoder lacks", "sd3"),
    "two things wrong": Refused(
        _file(_without(r"out\.2\.bias|encoder\.layers\.0\.mlp\.fc2\.bias")),
        r"(?s)UNet lacks.*encoder lacks", "sdxl"),
    "cut short": Refused(_bytes(lambda content: content[:-100]), "is cut short"),
    "cut within the header": Refused(_bytes(lambda content: content[:1000]), "is cut short"),
    "empty": Refused(_bytes(lambda content: b""), "is empty"),
    "a web page": Refused(_bytes(lambda content: b"<!DOCTYPE html><html>Log in"), "a web page"),
    "a Git LFS pointer": Refused(_bytes(lambda content: b"version https://git-lfs"), "LFS pointer"),
    "GGUF": Refused(_bytes(lambda content: b"GGUF" + bytes(60), "x.gguf"), "a GGUF file"),
    "a pickle": Refused(_bytes(lambda content: b"PK\x03\x04" + bytes(60), "x.ckpt"), "a pickle"),
    "a pickle with the wrong ending": Refused(
        _bytes(lambda content: b"\x80\x02" + bytes(60)), "a pickle"),
    "no model": Refused(_bytes(lambda content: b"hello, this is text", "x.txt"),
                        "not a safetensors file"),
    "bytes of no tensor": Refused(_header(lambda header: None, bytes(100)), "belong to no tensor"),
    "bytes of two tensors": Refused(_header(_shared), "shares bytes"),
    "half a character": Refused(_header(lambda header: header.update(
        {"__metadata__": {"a": "\ud800"}})), "half a character"),
    "metadata that predict x0": Refused(_header(lambda header: header.update(
        {"__metadata__": {"modelspec.prediction_type": "x0"}})), "predicts 'x0'"),
    "folder of EDM": Refused(_folder("sdxl", config("scheduler", _class_name="EDMEulerScheduler")),
                             "EDM"),
    "folder of an LCM": Refused(_folder("sd1", config("unet", time_cond_proj_dim=256)), "LCM"),
    "folder of SSD-1B": Refused(
        _folder("sdxl", config("unet", transformer_layers_per_block=[1, [1, 2]])), "SSD-1B"),
    "folder of the refiner": Refused(
        _folder("sdxl", config("unet", projection_class_embeddings_input_dim=2560)), "refiner"),
    "folder with latents of its own": Refused(
        _folder("sdxl", config("vae", latents_mean=[1.0] * 4)), "statistics of their own"),
    "folder without weights": Refused(
        _folder("sd1", lambda folder: (folder / f"unet/{UNET}.safetensors").unlink()),
        "holds no .safetensors weights"),
    "folder of pickles": Refused(
        _folder("sd1", lambda folder: each_file(
            folder, lambda f: f.rename(f.with_suffix(".bin")) and None)), "pickled weights"),
    "folder with a shard missing": Refused(_folder("sdxl", _one_shard), "lacks .*speaks"),
    "folder with swapped encoders": Refused(_folder("sdxl", _swapped), "CLIP-G"),
    "folder with a damaged config": Refused(
        _folder("sd1", lambda folder: (folder / "unet/config.json").write_text("{") and None),
        "Cannot read"),
    "folder whose config and weights differ": Refused(
        _folder("sd1", config("unet", cross_attention_dim=64)), "expected"),
    "folder that is none": Refused(
        lambda folder, state: save_folder(folder / "model", tiny("sd1")) / "unet", "is a folder"),
}  # fmt: skip

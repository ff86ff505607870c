"""One tiny checkpoint per family in every layout that files come in, and in those that none reads.

All numbers are such that every storage format holds them exactly, so that each layout has to give
the same network to the bit.
"""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import checkpoints
import torch
from checkpoints import State, Tiny, file_state, save, save_folder, vae_names
from safetensors.torch import load_file, save_file
from torch import nn

DENOISER, VAE = "model.diffusion_model.", "first_stage_model."
SMALLEST = 2.0**-6
"""Below it fp8 of 4 bits of exponent has other steps than fp8 of 5."""
MAKERS: dict[str, Callable[[], Tiny]] = {
    "sd1": checkpoints.sd1,
    "sdxl": checkpoints.sdxl,
    "sd3": checkpoints.sd3,
    "sd35": lambda: checkpoints.sd3(medium35=True, with_t5=False),
}
PLACES = {
    "sd1": checkpoints.SD1_PLACES,
    "sdxl": checkpoints.SDXL_PLACES,
    "sd3": checkpoints.SD3_PLACES,
    "sd35": checkpoints.SD3_PLACES,
}
UNET = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Item:
    """A checkpoint on disk, and the files that are named beside it."""

    path: Path
    encoders: Mapping[str, Path] = field(default_factory=dict)
    vae: Path | None = None


def exact(module: nn.Module) -> nn.Module:
    """A copy whose numbers every storage format holds."""
    module = copy.deepcopy(module)
    for value in module.state_dict().values():
        if value.is_floating_point():
            rounded = value.to(torch.float8_e5m2).float()
            value.copy_(torch.where(rounded.abs() < SMALLEST, 0.0, rounded))
    return module


@cache
def tiny(name: str) -> Tiny:
    """The modules of a family's checkpoint; not to be changed."""
    made = MAKERS[name]()
    encoders = {kind: exact(encoder) for kind, encoder in made.encoders.items()}
    return Tiny(exact(made.denoiser), encoders, made.vae and exact(made.vae))


@cache
def _state(name: str) -> State:
    return file_state(tiny(name))


def state_of(name: str) -> State:
    """Its tensors as a single file has them."""
    return dict(_state(name))


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    """The tensors with parts of their names replaced, by regular expressions."""
    found = {}
    for key, value in state.items():
        for old, new in pairs:
            key = re.sub(old, new, key)
        found[key] = value
    return found


def one_encoder_moved(name: str, state: State, place: str) -> State:
    """CLIP-L under another place."""
    return renamed(state, (f"^{re.escape(PLACES[name]['clip_l'])}", place))


def _ema(name: str, state: State) -> State:
    flat = {k: v for k, v in state.items() if k.startswith(DENOISER)}
    copies = {f"model_ema.{k.removeprefix('model.').replace('.', '')}": -v for k, v in flat.items()}
    return state | copies | {"model_ema.decay": torch.tensor(0.5)}


def _other_projection(name: str, state: State) -> State:
    found = {}
    for key, value in state.items():
        if key.endswith("text_projection"):
            found[f"{key}.weight"] = value.T.contiguous()
        elif key.endswith("text_projection.weight"):
            found[key.removesuffix(".weight")] = value.T.contiguous()
        else:
            found[key] = value
    return found


def _extras(name: str, state: State) -> State:
    place = PLACES[name]["clip_l"]
    return state | {
        f"{place}text_model.embeddings.position_ids": torch.arange(77)[None],
        f"{place}logit_scale": torch.tensor(4.5),
        f"{place}text_projection.weight": torch.eye(32),
        "alphas_cumprod": torch.zeros(1000),
        "denoiser.sigmas": torch.zeros(1000),
    }


def _newer_vae(name: str, state: State) -> State:
    """The VAE's attention as diffusers calls its parts since 0.17, matrices and no convolutions."""
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
    found = {}
    for key, value in state.items():
        match = re.fullmatch(rf"({re.escape(VAE)}\w+\.mid\.attn_1\.)(\w+)(\.\w+)", key)
        if match:
            key, matrix = match[1] + names[match[2]] + match[3], value.ndim == 4
            value = value.flatten(1) if matrix else value
        found[key] = value
    return found


def _by_forge(name: str, state: State) -> State:
    made = tiny(name)
    assert made.vae is not None
    found = {k: v for k, v in state.items() if k.startswith(DENOISER)}
    for kind, encoder in made.encoders.items():
        plain = encoder.state_dict() if kind == "t5xxl" else checkpoints.clip_names(encoder)
        found |= {f"text_encoders.{kind}.transformer.{key}": v for key, v in plain.items()}
        found[f"text_encoders.{kind}.logit_scale"] = torch.tensor(4.5)
    return found | {f"vae.{key}": v for key, v in made.vae.state_dict().items()}


FILES: dict[str, Callable[[str, State], State]] = {
    "as hosts save it": lambda name, state: state,
    "prefix diffusion_model": lambda name, state: renamed(state, (f"^{DENOISER}", DENOISER[6:])),
    "no prefix": lambda name, state: renamed(state, (f"^{DENOISER}", "")),
    "compiled": lambda name, state: renamed(state, (f"^{DENOISER}", rf"{DENOISER}_orig_mod.")),
    "compiled whole": lambda name, state: renamed(state, ("^", "_orig_mod.")),
    "data parallel": lambda name, state: renamed(state, ("^", "module.")),
    "FSDP": lambda name, state: renamed(state, (r"blocks\.(\d+)\.", r"\g<0>_fsdp_wrapped_module.")),
    "checkpointed": lambda name, state: renamed(
        state, (r"blocks\.(\d+)\.", r"\g<0>_checkpoint_wrapped_module.")
    ),
    "EMA copy beside": _ema,
    "projection under its other name": _other_projection,
    "CLIP-L without text_model": lambda name, state: renamed(
        state, (f"^({re.escape(PLACES[name]['clip_l'])})text_model\\.", r"\1")
    ),
    "T5's other embedding": lambda name, state: renamed(
        state, (r"t5xxl\.transformer\.shared\.", "t5xxl.transformer.encoder.embed_tokens.")
    ),
    "further tensors": _extras,
    "VAE of newer names": _newer_vae,
    "as Forge saves it": _by_forge,
    "no VAE": lambda name, state: {k: v for k, v in state.items() if not k.startswith(VAE)},
}
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
    "fp8 e4m3": torch.float8_e4m3fn,
    "fp8 e5m2": torch.float8_e5m2,
}


def _mixed(path: Path, state: State) -> Path:
    dtypes = [torch.float16, *DTYPES.values()]
    stored = {
        key: value.to(dtypes[number % len(dtypes)]) if value.is_floating_point() else value
        for number, (key, value) in enumerate(state.items())
    }
    save_file({key: value.clone().contiguous() for key, value in stored.items()}, path)
    return path


def _parts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def _each(folder: Path, change: Callable[[Path], None]) -> None:
    for part in _parts(folder):
        for file in list(part.glob("*.safetensors")):
            change(file)


def _variant(name: str) -> Callable[[Path], None]:
    return lambda folder: _each(folder, lambda file: _renamed_file(file, name))


def _renamed_file(file: Path, variant: str) -> None:
    file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def _sharded(variant: str = "", *, indexed: bool = True) -> Callable[[Path], None]:
    def split(file: Path) -> None:
        state = load_file(file)
        names, stem = sorted(state), f"{file.stem}{variant}"
        halves = {1: names[::2], 2: names[1::2]}
        shards = {n: f"{stem}-{n:05}-of-00002.safetensors" for n in halves}
        for number, keys in halves.items():
            tensors = {key: state[key] for key in keys}
            save_file(tensors, file.with_name(shards[number]), {"format": "pt"})
        weight_map = {key: shards[number] for number, keys in halves.items() for key in keys}
        file.unlink()
        if indexed:
            index = file.with_name(f"{file.stem}.safetensors.index{variant}.json")
            index.write_text(json.dumps({"weight_map": weight_map}))

    return lambda folder: _each(folder, split)


def _compiled_file(file: Path) -> None:
    save_file({f"_orig_mod.{key}": value for key, value in load_file(file).items()}, file)


def _pickles_beside(folder: Path) -> None:
    _each(folder, lambda file: file.with_suffix(".bin").write_bytes(b"\x80\x02") and None)


FOLDERS: dict[str, Callable[[Path], None]] = {
    "folder": lambda folder: None,
    "folder, fp16 variant": _variant("fp16"),
    "folder, EMA variant": _variant("ema"),
    "folder, shards": _sharded(),
    "folder, shards without index": _sharded(indexed=False),
    "folder, fp16 shards": _sharded(".fp16"),
    "folder, compiled": lambda folder: _each(folder, _compiled_file),
    "folder, pickles beside": _pickles_beside,
}
SEPARATE = "denoiser alone, the rest named"
LAYOUTS = (*FILES, *DTYPES, "mixed formats", *FOLDERS, SEPARATE)
FEW = (
    "as hosts save it",
    "no prefix",
    "compiled",
    "fp8 e4m3",
    "folder",
    "folder, shards",
    SEPARATE,
)
WRITTEN = [(name, layout) for name in MAKERS for layout in (FEW if name == "sd35" else LAYOUTS)]
"""Of two families that share their layouts, one is written in a few of them."""


def write(folder: Path, name: str, layout: str) -> Item:
    """A family's checkpoint in that layout, in an empty folder."""
    state, path = state_of(name), folder / f"{name}.safetensors"
    if layout in FILES:
        return Item(save(path, FILES[layout](name, state)))
    if layout in DTYPES:
        return Item(save(path, state, dtype=DTYPES[layout]))
    if layout in FOLDERS:
        made = save_folder(folder / name, tiny(name))
        FOLDERS[layout](made)
        return Item(made)
    if layout == SEPARATE:
        denoiser = {k: v for k, v in state.items() if k.startswith(DENOISER)}
        encoders = {}
        for kind, place in PLACES[name].items():
            own = {k.removeprefix(place): v for k, v in state.items() if k.startswith(place)}
            if own:
                encoders[kind] = save(folder / f"{kind}.safetensors", own)
        vae = tiny(name).vae
        assert vae is not None
        return Item(
            save(path, denoiser), encoders, save(folder / "vae.safetensors", vae_names(vae))
        )
    assert layout == "mixed formats"
    return Item(_mixed(path, state))


# What is refused: what each is, and words that its refusal has to hold.


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
    _sharded()(folder)
    (folder / "unet" / f"{UNET}-00002-of-00002.safetensors").unlink()


def _shared(header: dict) -> None:
    header["zzz"] = header[next(key for key in header if key != "__metadata__")]


def _diffusers_file(state: State) -> State:
    return dict(tiny("sdxl").denoiser.state_dict())


def _edge(state: State) -> State:
    return renamed(state, (f"^{DENOISER}", "model_ema."))


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
        _folder("sd1", lambda folder: _each(folder, lambda f: f.rename(f.with_suffix(".bin")) and
                                            None)), "pickled weights"),
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

"""One tiny checkpoint per family in every layout that files come in.

All numbers are such that every storage format holds them exactly, so that each layout has to give
the same network to the bit.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import checkpoints
import torch
from checkpoints import State, Tiny, file_state, save, save_folder, vae_names, wan_names
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
    "sd35-large": checkpoints.sd35_large,
    "anima": checkpoints.anima,
    "zimage": checkpoints.zimage,
}
PLACES = {
    "sd1": checkpoints.SD1_PLACES,
    "sdxl": checkpoints.SDXL_PLACES,
    "sd3": checkpoints.SD3_PLACES,
    "sd35": checkpoints.SD3_PLACES,
    "sd35-large": checkpoints.SD3_PLACES,
    "anima": {"qwen3": checkpoints.ANIMA_PLACES["qwen3"]},
    "zimage": checkpoints.ZIMAGE_PLACES,
}
FORGE_PLACES = {"anima": "qwen3_06b", "zimage": "qwen3_4b"}
"""What Forge Neo calls Qwen3 in the files that it saves."""
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


def state_without_vae(state: State) -> State:
    """The tensors of all but the VAE."""
    return {key: value for key, value in state.items() if not key.startswith((VAE, "vae."))}


def vae_state(name: str) -> State:
    """The tensors of the VAE as a file of its own has them."""
    vae = tiny(name).vae
    assert vae is not None
    return wan_names(vae) if name == "anima" else vae_names(vae)


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
    found = state | {"alphas_cumprod": torch.zeros(1000), "denoiser.sigmas": torch.zeros(1000)}
    if name in OF_QWEN:
        place = PLACES[name]["qwen3"]
        return found | {
            f"{place}rotary_emb.inv_freq": torch.ones(4),
            f"{place.removesuffix('model.')}lm_head.weight": torch.ones(64, 32),
        }
    place = PLACES[name]["clip_l"]
    return found | {
        f"{place}text_model.embeddings.position_ids": torch.arange(77)[None],
        f"{place}logit_scale": torch.tensor(4.5),
        f"{place}text_projection.weight": torch.eye(32),
    }


def _newer_vae(name: str, state: State) -> State:
    """The VAE's attention as diffusers calls its parts since 0.17, matrices and no convolutions.

    Wan's has diffusers' names throughout, as its folder and Qwen-Image's have them.
    """
    if name == "anima":
        vae = tiny(name).vae
        assert vae is not None
        return state_without_vae(state) | {VAE + key: v for key, v in vae.state_dict().items()}
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
    found = {}
    for key, value in state.items():
        match = re.fullmatch(r"((?:first_stage_model|vae)\.\w+\.mid\.attn_1\.)(\w+)(\.\w+)", key)
        if match:
            key, matrix = match[1] + names[match[2]] + match[3], value.ndim == 4
            value = value.flatten(1) if matrix else value
        found[key] = value
    return found


def _by_forge(name: str, state: State) -> State:
    made = tiny(name)
    assert made.vae is not None
    found = {k: v for k, v in state.items() if k.startswith(DENOISER)}
    if name in OF_QWEN:
        place = f"text_encoders.{FORGE_PLACES[name]}.transformer.model."
        found |= {place + key: v for key, v in made.encoders["qwen3"].state_dict().items()}
        return found | {f"vae.{key}": v for key, v in vae_state(name).items()}
    for kind, encoder in made.encoders.items():
        plain = encoder.state_dict() if kind == "t5xxl" else checkpoints.clip_names(encoder)
        found |= {f"text_encoders.{kind}.transformer.{key}": v for key, v in plain.items()}
        found[f"text_encoders.{kind}.logit_scale"] = torch.tensor(4.5)
    return found | {f"vae.{key}": v for key, v in made.vae.state_dict().items()}


BLOCK = r"(blocks|layers)\.(\d+)\."
FILES: dict[str, Callable[[str, State], State]] = {
    "as hosts save it": lambda name, state: state,
    "prefix net": lambda name, state: renamed(state, (f"^{DENOISER}", "net.")),
    "prefix model.model": lambda name, state: renamed(state, (f"^{DENOISER}", "model.model.")),
    "prefix diffusion_model": lambda name, state: renamed(state, (f"^{DENOISER}", DENOISER[6:])),
    "no prefix": lambda name, state: renamed(state, (f"^{DENOISER}", "")),
    "compiled": lambda name, state: renamed(state, (f"^{DENOISER}", rf"{DENOISER}_orig_mod.")),
    "compiled whole": lambda name, state: renamed(state, ("^", "_orig_mod.")),
    "data parallel": lambda name, state: renamed(state, ("^", "module.")),
    "FSDP": lambda name, state: renamed(
        state, (r"(blocks|layers)\.(\d+)\.", r"\g<0>_fsdp_wrapped_module.")
    ),
    "checkpointed": lambda name, state: renamed(
        state, (r"(blocks|layers)\.(\d+)\.", r"\g<0>_checkpoint_wrapped_module.")
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
    "no VAE": lambda name, state: state_without_vae(state),
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


def each_file(folder: Path, change: Callable[[Path], None]) -> None:
    for part in _parts(folder):
        for file in list(part.glob("*.safetensors")):
            change(file)


def _variant(name: str) -> Callable[[Path], None]:
    return lambda folder: each_file(folder, lambda file: _renamed_file(file, name))


def _renamed_file(file: Path, variant: str) -> None:
    file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def sharded(variant: str = "", *, indexed: bool = True) -> Callable[[Path], None]:
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

    return lambda folder: each_file(folder, split)


def _compiled_file(file: Path) -> None:
    save_file({f"_orig_mod.{key}": value for key, value in load_file(file).items()}, file)


def _pickles_beside(folder: Path) -> None:
    each_file(folder, lambda file: file.with_suffix(".bin").write_bytes(b"\x80\x02") and None)


FOLDERS: dict[str, Callable[[Path], None]] = {
    "folder": lambda folder: None,
    "folder, fp16 variant": _variant("fp16"),
    "folder, EMA variant": _variant("ema"),
    "folder, shards": sharded(),
    "folder, shards without index": sharded(indexed=False),
    "folder, fp16 shards": sharded(".fp16"),
    "folder, compiled": lambda folder: each_file(folder, _compiled_file),
    "folder, pickles beside": _pickles_beside,
}
SEPARATE = "denoiser alone, the rest named"
LAYOUTS = (*FILES, *DTYPES, "mixed formats", *FOLDERS, SEPARATE)
OF_QWEN = ("anima", "zimage")
OF_CLIP = {"projection under its other name", "CLIP-L without text_model", "T5's other embedding"}
FEW = (
    "as hosts save it",
    "no prefix",
    "compiled",
    "fp8 e4m3",
    "folder",
    "folder, shards",
    SEPARATE,
)


def layouts_of(name: str) -> list[str]:
    """Those that a family has; of models that share them, one is written in all."""
    if name.startswith("sd35"):
        return list(FEW)
    left_out = (OF_CLIP if name in OF_QWEN else set()) | (
        set(FOLDERS) if name == "anima" else set()
    )
    return [layout for layout in LAYOUTS if layout not in left_out]


WRITTEN = [(name, layout) for name in MAKERS for layout in layouts_of(name)]


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
        vae = save(folder / "vae.safetensors", vae_state(name))
        return Item(save(path, denoiser), encoders, vae)
    assert layout == "mixed formats"
    return Item(_mixed(path, state))

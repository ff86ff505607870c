"""Inputs that people reported to other programs, made anew: what becomes of each here.

`python tests/reports.py` prints the table of docs/inputs.md.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    import runpy

    runpy.run_path(str(Path(__file__).resolve().parents[1] / "mount.py"))

import checkpoints
import corpus
import torch
from checkpoints import State, save
from corpus import DENOISER, VAE, state_of
from dpdmd_studio.app.prompts.images import image_prompt
from dpdmd_studio.app.prompts.reading import read_prompts
from dpdmd_studio.core.errors import DPDMDError
from dpdmd_studio.trainer.loading.checkpoint import Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.lora_merge import open_merging
from PIL import Image
from safetensors.torch import save_file

GITHUB = "https://github.com/"


@dataclass(frozen=True)
class Report:
    """An input that somebody reported.

    Attributes:
        what: the input, in words.
        make: writes it into a folder; the path.
        kind: who reads it: checkpoint, lora, prompts (which give their notes, too) or infotext.
        expected: "read", or words of the refusal; of texts, the prompts.
        name: of the family whose tensors `make` gets.
    """

    what: str
    make: Callable[[Path, State], Path]
    expected: str
    kind: str = "checkpoint"
    name: str = "sd1"


def _saved(change: Callable[[State], State]) -> Callable[[Path, State], Path]:
    return lambda folder, state: save(folder / "x.safetensors", change(state))


def _without(pattern: str) -> Callable[[Path, State], Path]:
    return _saved(lambda state: {k: v for k, v in state.items() if not re.search(pattern, k)})


def _bytes(content: bytes | None, name: str = "x.safetensors") -> Callable[[Path, State], Path]:
    def make(folder: Path, state: State) -> Path:
        whole = save(folder / "whole.safetensors", state).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
        return folder / name

    return make


def _fp16_alone(folder: Path, state: State) -> Path:
    made = checkpoints.save_folder(folder / "model", corpus.tiny("sdxl"))
    corpus.FOLDERS["folder, fp16 variant"](made)
    return made


def _mixed_shards(folder: Path, state: State) -> Path:
    made = checkpoints.save_folder(folder / "model", corpus.tiny("sdxl"))
    corpus.FOLDERS["folder, shards"](made)
    for part in ("text_encoder", "vae"):
        for file in list((made / part).iterdir()):
            new = re.sub(r"^(\w+)-(\d{5}-of-\d{5})", r"\1.bf16-\2", file.name)
            new = new.replace("safetensors.index", "safetensors.index.bf16")
            file.rename(file.with_name(new))
        for index in (made / part).glob("*index*"):
            index.write_text(re.sub(r"(\w+)(-\d{5}-of)", r"\1.bf16\2", index.read_text()))
    return made


def _newer_vae(state: State) -> State:
    return corpus.FILES["VAE of newer names"]("sd1", state)


def _inpainting(state: State) -> State:
    key = f"{DENOISER}input_blocks.0.0.weight"
    return state | {key: torch.cat([state[key]] * 3, 1)[:, :9]}


def _second(state: State) -> State:
    wide = {k: torch.ones(len(v), 1024) for k, v in state.items() if re.search(r"attn2.to_[kv]", k)}
    return state | wide


# LoRAs for the tiny SD 1.x and SDXL
FIRST = {"sd1": "down_blocks.0.attentions.0", "sdxl": "down_blocks.1.attentions.0"}
SIZES = {"sd1": 32, "sdxl": 64}


def _pair(begin: str, out: int, into: int, ends=("lora_down.weight", "lora_up.weight")) -> State:
    return {f"{begin}.{ends[0]}": torch.ones(2, into), f"{begin}.{ends[1]}": torch.ones(out, 2)}


def _lora(change: Callable[[State], State]) -> Callable[[Path, State], Path]:
    def make(folder: Path, state: State) -> Path:
        tensors = {k: v.clone() for k, v in change({}).items()}
        save_file(tensors, folder / "lora.safetensors")
        return folder / "lora.safetensors"

    return make


Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
XL = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TE = "text_model_encoder_layers_0_self_attn_q_proj"
PEFT = ("lora_A.{}.weight", "lora_B.{}.weight")


def _extracted() -> State:
    """What ComfyUI's node saves of two models' difference, biases included: a piece of it."""
    layer = "text_encoders.clip_l.transformer.text_model.encoder.layers.0"
    block = "diffusion_model.input_blocks.3.1.transformer_blocks.0"
    found: State = {}
    for module, size in ((f"{layer}.self_attn.k_proj", 32), (f"{block}.attn1.to_out.0", 64)):
        found |= _pair(module, size, size) | {f"{module}.diff_b": torch.ones(size)}
    for norm, size in ((f"{layer}.layer_norm1", 32), (f"{block}.norm1", 64)):
        found |= {f"{norm}.{ending}": torch.ones(size) for ending in ("diff", "diff_b")}
    return found


def _adapter(name: str) -> tuple[str, str]:
    return PEFT[0].format(name), PEFT[1].format(name)


def _text(content: bytes) -> Callable[[Path, State], Path]:
    def make(folder: Path, state: State) -> Path:
        (folder / "p.txt").write_bytes(content)
        return folder / "p.txt"

    return make


def _image(name: str, entries: dict[int, str | bytes], comment: bytes = b""):
    """An image with these tags in its first directory, and a UserComment in its second."""

    def make(folder: Path, state: State) -> Path:
        exif = Image.Exif()
        for tag, value in entries.items():
            exif[tag] = value
        if comment:
            exif.get_ifd(0x8769)[0x9286] = comment
        Image.new("RGB", (8, 8)).save(folder / name, exif=exif)
        return folder

    return make


UNICODE, ASCII = b"UNICODE\0", b"ASCII\0\0\0"
MAKE, MODEL, USER_COMMENT, XP_COMMENT = 0x010F, 0x0110, 0x9286, 0x9C9C
ROBOT = "a stable robot\nSteps: 20, Sampler: k_euler, CFG scale: 9, Seed: 1415104642, Size: 512x512"
SWARM = json.dumps({"sui_image_params": {"prompt": "a harbour", "model": "x", "steps": 4}})
NOVEL = json.dumps(
    {"Software": "NovelAI", "Comment": json.dumps({"prompt": "ein Märchen", "uc": "x"})},
    ensure_ascii=False,
)
GRAPH = json.dumps({
    "3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass fox"}},
})  # fmt: skip
SPREAD = (
    "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 1, Wildcard prompt: \"a cat\n"
    "in a hat\", Size: 512x512, Model: x"
)  # fmt: skip
NEXT = (
    "a ship, nebula, \n\nNegative prompt: planet\nVersion: aa62f6d, Pipeline: Original, Steps: 25, "
    "Seed: 1693458539, Sampler: Euler a, CFG scale: 7, Size: 768x512, Parser: Full parser, "
    'Operations: , ControlNet 0: "preprocessor: canny, starting/ending: (0, 1)", Hires steps: 20'
)
FACES = (
    "a face\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 512x512, Face restoration: "
)

REPORTS = {
    "Comfy-Org/ComfyUI/issues/2179": Report(
        "a UNet under diffusers' names in one file", _saved(
            lambda state: dict(corpus.tiny("sdxl").denoiser.state_dict())), "without its folder"),
    "Comfy-Org/ComfyUI/issues/2923": Report(
        "SDXL with a projection of CLIP-L that training tools do not expect", _saved(
            lambda state: state | {"conditioner.embedders.0.transformer.text_projection.weight":
                                   torch.eye(32)}), "read", name="sdxl"),
    "kohya-ss/sd-scripts/pull/618": Report(
        "a VAE with diffusers 0.17's names of its attention", _saved(_newer_vae), "read"),
    "hollowstrawberry/kohya-colab/issues/245": Report(
        "CLIP without position_ids", _without("position_ids"), "read"),
    "bmaltais/kohya_ss/issues/346": Report(
        "a VAE without its encoder's first layer", _without(f"^{VAE}encoder.conv_in"), "read"),
    "bmaltais/kohya_ss/issues/306": Report(
        "no time_embed.0.weight", _without(r"time_embed\.0\.weight"), "time_embed.0.weight"),
    "Nerogar/OneTrainer/issues/275": Report(
        "an inpainting model", _saved(_inpainting), "an inpainting model"),
    "lllyasviel/stable-diffusion-webui-forge/issues/1309": Report(
        "nf4, as Forge saves it", _saved(
            lambda state: state | {f"{DENOISER}out.2.weight.absmax": torch.ones(1),
                                   f"{DENOISER}out.2.weight.quant_state.bitsandbytes__nf4":
                                   torch.ones(8)}), "quantised weights"),
    "lllyasviel/stable-diffusion-webui-forge/pull/2636": Report(
        "encoders and VAE under text_encoders. and vae., as Forge saved them", _saved(
            lambda state: corpus.FILES["as Forge saves it"]("sdxl", state)), "read", name="sdxl"),
    "Comfy-Org/ComfyUI/issues/3225": Report(
        "a download that was cut off", _bytes(None), "is cut short"),
    "huggingface/diffusers/issues/11182": Report(
        "a folder of plain and of bf16 shards", _mixed_shards, "read"),
    "huggingface/diffusers/issues/10928": Report(
        "a folder with fp16 files alone", _fp16_alone, "read"),
    "Comfy-Org/ComfyUI/pull/13239": Report(
        "fp8 with scales", _saved(lambda state: state | {
            f"{DENOISER}out.2.weight_scale": torch.ones(1)}), "quantised weights"),
    "Haoming02/sd-webui-forge-classic/pull/1053": Report(
        "Flux with key_norm.weight", _saved(lambda state: {
            f"{DENOISER}double_blocks.0.img_attn.norm.key_norm.weight": torch.ones(2)}), "is Flux"),
    "Comfy-Org/ComfyUI/issues/5494": Report(
        "a .ckpt named as a checkpoint", _bytes(b"PK\x03\x04" + bytes(64), "SUPIR.ckpt"),
        "is a pickle"),
    "huggingface/diffusers/issues/1877": Report(
        "Stable Diffusion 2 taken for 1", _saved(_second), "is SD 2.x"),
    "Nerogar/OneTrainer/issues/314": Report(
        "lora_te2_text_projection", _lora(lambda _: _pair("lora_te2_text_projection", 64, 64)
                                          | _pair("lora_unet_" + XL.replace(".", "_"), 64, 64)),
        "read", "lora", "sdxl"),
    "huggingface/diffusers/issues/11675": Report(
        "PEFT's adapter default_0", _lora(
            lambda _: _pair(f"unet.{XL}", 64, 64, _adapter("default_0"))), "read", "lora", "sdxl"),
    "huggingface/diffusers/issues/6366": Report(
        "halves called lora_A_1", _lora(lambda _: _pair(
            f"unet.{XL}", 64, 64, ("lora_A_1.default_0.weight", "lora_B_1.default_0.weight"))),
        "numbered halves", "lora", "sdxl"),
    "Comfy-Org/ComfyUI/issues/1347": Report(
        "changes of norms (w_norm, b_norm)", _lora(lambda _: _pair(Q, 32, 32) | {
            "lora_unet_down_blocks_0_attentions_0_norm.w_norm": torch.ones(32),
            "lora_unet_down_blocks_0_attentions_0_norm.b_norm": torch.ones(32)}),
        "read", "lora"),
    "AUTOMATIC1111/stable-diffusion-webui/issues/14971": Report(
        "BOFT without alpha", _lora(lambda _: {f"{Q}.oft_blocks": torch.ones(2, 4, 2, 2)}),
        "OFT", "lora"),
    "Comfy-Org/ComfyUI/issues/3494": Report(
        "DoRA of PEFT, names half with dots", _lora(lambda _: _pair(
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1.to_q", 32, 32) | {
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1.to_q."
            "lora_magnitude_vector": torch.ones(32)}), "DoRA", "lora"),
    "Comfy-Org/ComfyUI/issues/3021": Report(
        "numbered weights of Stable Cascade's trainer", _lora(lambda _: {
            "weights.0.lora_down": torch.ones(2, 4), "weights.0.lora_up": torch.ones(4, 2),
            "embeddings.indices": torch.ones(1)}), "numbered layers", "lora"),
    "d8ahazard/sd_dreambooth_extension/issues/1380": Report(
        "blocks that are numbered wrongly", _lora(lambda _: _pair(
            "lora_unet_input_blocks_1_0_transformer_blocks_0_attn1_to_k", 32, 32)),
        "fits nothing", "lora"),
    "Nerogar/OneTrainer/issues/885": Report(
        "checkpoint's names after unet.", _lora(lambda _: _pair(
            "unet.input_blocks.3.1.transformer_blocks.0.attn1.to_q", 64, 64)), "read", "lora",
        "sdxl"),
    "huggingface/diffusers/pull/3437": Report(
        "an encoder's LoRA as early diffusers saved it (k_proj.to_k_lora)", _lora(
            lambda _: _pair("text_encoder.text_model.encoder.layers.0.self_attn.k_proj.to_k_lora",
                            32, 32, ("down.weight", "up.weight"))), "diffusers 0.15", "lora"),
    "Haoming02/sd-webui-forge-classic/issues/492": Report(
        "OneTrainer's SDXL LoRA with both encoders", _lora(
            lambda _: _pair(f"lora_te1_{TE}", 32, 32) | _pair(f"lora_te2_{TE}", 64, 64)
            | _pair("lora_unet_" + XL.replace(".", "_"), 64, 64)), "read", "lora", "sdxl"),
    "AUTOMATIC1111/stable-diffusion-webui/issues/12128": Report(
        "settings with a line break inside", _text(SPREAD.encode()), "a cat", "infotext"),
    "vladmandic/sdnext/issues/1864": Report(
        "settings led by Version, one empty", _text(NEXT.encode()), "a ship, nebula,", "infotext"),
    "AUTOMATIC1111/stable-diffusion-webui/issues/11000": Report(
        "an empty setting at the end", _text(FACES.encode()), "a face", "infotext"),
    "kohya-ss/sd-scripts/pull/514": Report(
        "a file of prompts in Shift-JIS", _text("猫\n犬".encode("shift_jis")), "is not UTF-8",
        "prompts"),
    "AUTOMATIC1111/stable-diffusion-webui-wildcards/issues/23": Report(
        "a file of names in cp1252", _text(b"Zo\xeb\nRen\xe9e\n"), "line 1 holds the byte 0xeb",
        "prompts"),
    # Looked for later, once whole changes of weights and pictures of other kinds were read.
    "Comfy-Org/ComfyUI/issues/1467": Report(
        "LyCORIS of kind full (diff, diff_b)", _lora(lambda _: {
            f"{Q}.diff": torch.ones(32, 32), f"{Q[:-4]}to_out_0.diff_b": torch.ones(32),
            f"lora_te_{TE}.diff": torch.ones(32, 32)}), "read", "lora"),
    "nunchux-ai/ComfyUI-nunchaku/issues/94": Report(
        "ComfyUI's extraction with biases, encoders too", _lora(lambda _: _extracted()),
        "read", "lora", "sdxl"),
    "huggingface/diffusers/issues/11903": Report(
        "PEFT's LoRA of joined layers (to_qkv)", _lora(lambda _: _pair(
            f"unet.{XL[:-4]}to_qkv", 192, 64, _adapter("default"))), "read", "lora", "sdxl"),
    "bghira/SimpleTuner/issues/3222": Report(
        "LoKr of joined layers (Krea 2 there, SD3 here)", _lora(lambda _: {
            "lycoris_transformer_blocks_0_attn_to_qkv.lokr_w1": torch.ones(3, 2),
            "lycoris_transformer_blocks_0_attn_to_qkv.lokr_w2": torch.ones(64, 32)}),
        "read", "lora", "sd3"),
    "Comfy-Org/ComfyUI/issues/10222": Report(
        "a LoRA for Wan with differences of norms", _lora(lambda _: _pair(
            "diffusion_model.blocks.25.cross_attn.k_img", 32, 32) | {
            "diffusion_model.blocks.25.cross_attn.norm_k_img.diff": torch.ones(32)}),
        "is a LoRA for Wan", "lora"),
    "Nerogar/OneTrainer/issues/165": Report(
        "a LoRA for Stable Cascade's encoder", _lora(lambda _: _pair(
            f"lora_prior_te_{TE}", 32, 32)), "changes a text encoder that", "lora"),
    "Comfy-Org/ComfyUI/issues/6381": Report(
        "IA3 of a text encoder", _lora(lambda _: {
            f"lora_te_{TE}.weight": torch.ones(32), f"lora_te_{TE}.on_input": torch.ones(1)}),
        "IA3", "lora"),
    "LucianoCirino/efficiency-nodes-comfyui/issues/104": Report(
        "diffusers' attention processors (to_q_lora)", _lora(lambda _: _pair(
            f"unet.{XL.replace('.to_q', '.processor.to_q_lora')}", 64, 64,
            ("down.weight", "up.weight"))), "read", "lora", "sdxl"),
    "Comfy-Org/ComfyUI/issues/3701": Report(
        "SD3 under lora_transformer_transformer_blocks_", _lora(lambda _: _pair(
            "lora_transformer_transformer_blocks_0_attn_add_k_proj", 64, 64)),
        "read", "lora", "sd3"),
    "hako-mikan/sd-webui-supermerger/issues/407": Report(
        "a merge that lost its text encoders", _saved(lambda state: {
            k: v for k, v in state.items() if not k.startswith("conditioner.")}),
        "no CLIP-L text encoder and no CLIP-G", name="sdxl"),
    "zanllp/infinite-image-browsing/pull/942": Report(
        "a UserComment in the first directory of EXIF", _image(
            "a.jpg", {USER_COMMENT: UNICODE + ROBOT.encode("utf-16-be")}),
        "a stable robot", "prompts"),
    "zanllp/infinite-image-browsing/pull/798": Report(
        "a WebP of ComfyUI", _image(
            "a.webp", {MODEL: f"prompt:{GRAPH}", MAKE: 'workflow:{"nodes": []}'}),
        "a glass fox", "prompts"),
    "LuqP2/Image-MetaHub/issues/3": Report(
        "a JPEG of SwarmUI", _image("a.jpg", {}, UNICODE + SWARM.encode("utf-16-be")),
        "a harbour", "prompts"),
    "Aaalice233/Aaalice_NAI_Launcher/pull/103": Report(
        "a WebP of NovelAI, UTF-8 that is called ASCII", _image(
            "a.webp", {}, ASCII + NOVEL.encode()),
        "ein Märchen", "prompts"),
    "AUTOMATIC1111/stable-diffusion-webui/issues/270": Report(
        "a JPEG with the text in Windows' comment", _image(
            "a.jpg", {XP_COMMENT: ROBOT.encode("utf-16-le")}), "a stable robot", "prompts"),
    "vladmandic/sdnext/issues/4582": Report(
        "a line of a list that begins with #", _text(b"#this comment is a test\na cat\n"),
        "a cat (1 lines that begin with # were left out as comments, such as '#this comment is a "
        "test'. Where one is a prompt, put a backslash in front: \\#.)", "prompts"),
    "adieyal/sd-dynamic-prompts/issues/189": Report(
        "names that begin with #, escaped", _text(b"\\#bad-hands, a cat\na #1 fan\n"),
        "#bad-hands, a cat, a #1 fan", "prompts"),
}  # fmt: skip


def outcome(reference: str, folder: Path) -> str:
    """What becomes of the input: "read", the prompt that was found, or the refusal's words."""
    report = REPORTS[reference]
    path = report.make(folder, state_of(report.name) if report.kind == "checkpoint" else {})
    try:
        return READERS[report.kind](path, report.name)
    except DPDMDError as error:
        return " ".join(str(error).replace(f"{folder}/", "").split())


def _checkpoint(path: Path, name: str) -> str:
    loaded = open_checkpoint(path, dtype=torch.float32, device="cpu").load()
    told = [note for note in loaded.notes if "unknown" in note or "linear map" in note]
    return " ".join(["read", *told])


def _as_lora(path: Path, name: str) -> str:
    base = save(path.parent / "base.safetensors", state_of(name))
    merged = Overrides(loras=[open_merging(path, 1.0)])
    open_checkpoint(base, dtype=torch.float32, device="cpu", overrides=merged).load()
    return "read"


def _prompts(path: Path) -> str:
    found = read_prompts(path)
    said = [note for note in found.notes if "images read" not in note]
    return ", ".join(found.prompts) + (f" ({' '.join(said)})" if said else "")


READERS: dict[str, Callable[[Path, str], str]] = {
    "checkpoint": _checkpoint,
    "lora": _as_lora,
    "prompts": lambda path, name: _prompts(path),
    "infotext": lambda path, name: image_prompt({"parameters": path.read_text()})[0],
}


if __name__ == "__main__":
    import traceback

    for one in REPORTS:
        with tempfile.TemporaryDirectory() as place:
            try:
                said = outcome(one, Path(place))
            except Exception:  # an older version may raise anything
                said = "traceback: " + traceback.format_exc().strip().splitlines()[-1]
        sys.stdout.write(f"{one}\t{REPORTS[one].what}\t{said}\n")

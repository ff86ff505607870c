"""Time and memory of loading full-size checkpoints, against the time of reading their bytes.

    python benchmarks/full_size_loading.py [--families sd1 sdxl sd3] [--folder DIR]

Writes random fp16 files in the real layouts and sizes (SD 1.5 2.1 GB, SDXL 6.9 GB, SD3.5 medium
with CLIP-L 5.3 GB) into a temporary folder, one at a time, and removes each. Every figure comes
from a process of its own with imports done before the clock starts. "cold" means that the operating
system was asked to forget the file first.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mounting  # noqa: F401
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from dpdmd_studio.core.families import family
from dpdmd_studio.trainer.loading.names import openclip_source, vae_source
from dpdmd_studio.trainer.loading.weights import stored_shape
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Shapes = Iterator[tuple[str, tuple[int, ...]]]
CHUNK = 1 << 26
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
          "num_attention_heads": 20, "projection_dim": 1280}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
          "num_attention_heads": 12}  # fmt: skip
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
       "down_block_types": ("DownEncoderBlock2D",) * 4,
       "up_block_types": ("UpDecoderBlock2D",) * 4}  # fmt: skip
SDXL = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD35_MEDIUM = {
    "sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
    "caption_projection_dim": 1536, "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip


def shapes(name: str) -> Shapes:
    """Names and shapes of every tensor in a checkpoint, the VAE's encoder left out."""
    with torch.device("meta"):
        if name == "sd3":
            yield from denoiser_shapes(name, SD3Transformer2DModel(**SD35_MEDIUM))
            yield from clip_shapes("text_encoders.clip_l.transformer.")
        elif name == "sdxl":
            yield from denoiser_shapes(name, UNet2DConditionModel(**SDXL))
            yield from clip_shapes("conditioner.embedders.0.transformer.")
            yield from clip_g_shapes("conditioner.embedders.1.model.")
        else:
            yield from denoiser_shapes(name, UNet2DConditionModel(cross_attention_dim=768))
            yield from clip_shapes("cond_stage_model.transformer.")
        yield from vae_shapes(16 if name == "sd3" else 4, quantised=name != "sd3")


def placed(network: nn.Module, source, prefix: str) -> Shapes:
    """What the file holds for a network, fused tensors once."""
    seen: set[str] = set()
    for parameter, value in network.state_dict().items():
        item = source(parameter)
        if item.key not in seen:
            seen.add(item.key)
            yield prefix + item.key, stored_shape(item, tuple(value.shape))


def denoiser_shapes(name: str, network: nn.Module) -> Shapes:
    """The denoiser."""
    facts, config = family(name), dict(network.config)
    yield from placed(network, lambda n: facts.tensor_source(n, config), "model.diffusion_model.")


def clip_shapes(prefix: str) -> Shapes:
    """CLIP-L."""
    for name, value in CLIPTextModel(CLIPTextConfig(**CLIP_L)).state_dict().items():
        start = "" if name.startswith("text_model.") else "text_model."
        yield prefix + start + name, tuple(value.shape)


def clip_g_shapes(prefix: str) -> Shapes:
    """CLIP-G as OpenCLIP."""
    network = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G))
    yield from placed(network, openclip_source, prefix)


def vae_shapes(latents: int, *, quantised: bool) -> Shapes:
    """The VAE's decoder."""
    vae = AutoencoderKL(**VAE, latent_channels=latents, use_post_quant_conv=quantised)
    source = vae_source(len(VAE["block_out_channels"]))
    state = {n: v for n, v in vae.state_dict().items() if n.startswith(("decoder.", "post_"))}
    for name, value in state.items():
        item = source(name)
        yield f"first_stage_model.{item.key}", stored_shape(item, tuple(value.shape))


def write_random(path: Path, name: str) -> None:
    """A random fp16 checkpoint, written in pieces."""
    header, end = {}, 0
    for key, shape in shapes(name):
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = (torch.randn(CHUNK // 2) * 0.02).half().numpy().tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, CHUNK):
            file.write(noise[: min(CHUNK, end - start)])
        file.flush()
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Ask the operating system to drop the file from its cache, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(what: str, path: Path) -> dict[str, float]:
    """Seconds and memory of one action, in this process."""
    from dpdmd_studio.trainer.loading.checkpoint import load_checkpoint

    if what == "read":
        buffer = bytearray(CHUNK)
        start = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    else:
        start = time.perf_counter()
        dtype = getattr(torch, what)
        kept = load_checkpoint(path, dtype=dtype, device="cpu", report=lambda _: None)
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own = int(status["RssAnon"].split()[0]) / 2**20
    if what != "read":
        assert next(kept.network.parameters()).dtype == dtype
    return {"seconds": seconds, "own_gib": own, "peak_gib": int(status["VmHWM"].split()[0]) / 2**20}


def child(what: str, path: Path) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--measure", what, "--file", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(name: str, folder: Path) -> None:
    """Measure one family and print its lines."""
    path = folder / f"random-{name}.safetensors"
    try:
        write_random(path, name)
        size = path.stat().st_size / 1e9
        for state in ("cold", "warm"):
            rows = {}
            for what in ("read", "float16", "bfloat16"):
                if state == "cold":
                    forget(path)
                rows[what] = child(what, path)
            base = rows["read"]["seconds"]
            for what, row in rows.items():
                print(
                    f"| {name} {size:.2f} GB | {state} | {what} | {row['seconds']:.2f} s | "
                    f"{row['seconds'] / base:.2f} | {row['own_gib']:.2f} | {row['peak_gib']:.2f} |"
                )
    finally:
        path.unlink(missing_ok=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=["sd1", "sdxl", "sd3"])
    parser.add_argument("--folder", type=Path, help="where the files go; needs 7 GB")
    parser.add_argument("--measure", choices=["read", "float16", "bfloat16"])
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.measure:
        print(json.dumps(measure(options.measure, options.file)))
        return
    print("| file | cache | action | time | x reading | own GiB | peak GiB with mapped pages |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.families:
            report(name, Path(folder))


if __name__ == "__main__":
    main()

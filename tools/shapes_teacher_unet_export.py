"""Stage `export` of the SD 1.x teacher: one fp16 file in the layout of a single-file SD 1.x model.

`model.diffusion_model.` holds the UNet under LDM's names. `first_stage_model.` is the decoder of a
TAESD, which takes the network's latents as they are. The text model stands under a prefix of our
own, as in the SD3 teacher: a host would take SD's names for the full-size CLIP-L.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapes_teacher_export as sd3_export
import shapes_teacher_unet as unet
import shapes_teacher_vae as vae
import torch
from safetensors.torch import load_file
from shapes_teacher_common import device, part
from torch import Tensor

SIZE_LIMIT = 8_000_000
ROUND_TRIP = 200
DENOISER, DECODER = "model.diffusion_model.", "first_stage_model."


def ldm_names(state: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """A diffusers UNet's tensors under LDM's names."""
    from dpdmd_studio.core.families.unet import tensor_source

    return {tensor_source(name, config).key: value for name, value in state.items()}


def padded_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's weights in TAESD's full layout under its own names, zeros around them."""
    from diffusers import AutoencoderTiny

    full = AutoencoderTiny(latent_channels=unet.LATENT_CHANNELS).decoder.state_dict()
    trained = {name: value for name, value in state.items() if name.startswith("taesd_decoder.")}
    result: dict[str, Tensor] = {}
    for name, whole in full.items():
        _, index, rest = name.split(".", 2)
        name = f"taesd_decoder.{int(index) + 1}.{rest}"  # diffusers keeps the clamp elsewhere
        result[name] = torch.zeros_like(whole)
        if name in trained:
            corner = tuple(slice(n) for n in trained[name].shape)
            result[name][corner] = trained[name].cpu()
    missing = set(trained) - set(result)
    assert not missing, f"names that TAESD does not have: {sorted(missing)}"
    return result


def write(folder: Path, target: Path, guidance_scale: float, steps: int) -> int:
    """Write the file and prove that diffusers reads the same weights from it; returns its size."""
    teacher = unet.load(folder)
    tensors = {
        f"{DENOISER}{k}": v for k, v in ldm_names(teacher.unet.state_dict(), unet.UNET).items()
    }
    trained = unet.load_decoder(folder, target.with_name("shapes-sd3.safetensors"))
    decoder = padded_decoder(trained.state_dict())
    tensors |= {f"{DECODER}{k}": v for k, v in decoder.items()}
    tensors = sd3_export.finished(tensors, teacher.text)
    wanted, back = teacher.unet.state_dict(), as_diffusers(tensors, unet.UNET)
    assert set(back) == set(wanted), sorted(set(back) ^ set(wanted))
    for name, value in wanted.items():
        if not torch.equal(back[name], value.cpu().half()):
            raise RuntimeError(f"{name} does not survive the conversion")
    return sd3_export.save(tensors, target, "SD1", (guidance_scale, steps), SIZE_LIMIT)


def as_diffusers(tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """The UNet's tensors as diffusers' own conversion names them."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    ours = {k: v for k, v in tensors.items() if k.startswith(DENOISER)}
    return convert_ldm_unet_checkpoint(ours, {**config, "class_embed_type": None})


class Models:
    """Teacher and diffusers' TAESD decoder out of the written file, in fp32 on `device()`."""

    latent_shape = (unet.LATENT_CHANNELS, 8, 8)

    def __init__(self, path: Path) -> None:
        from diffusers import AutoencoderTiny

        tensors = {k: v.float() for k, v in load_file(path).items()}
        teacher = unet.Teacher()
        teacher.unet.load_state_dict(as_diffusers(tensors, unet.UNET))
        sd3_export.load_text(teacher.text, tensors)
        decoder = AutoencoderTiny(latent_channels=unet.LATENT_CHANNELS).decoder
        renamed = {}
        for name, value in part(tensors, f"{DECODER}taesd_decoder.").items():
            index, rest = name.split(".", 1)
            renamed[f"layers.{int(index) - 1}.{rest}"] = value
        decoder.load_state_dict(renamed)
        self.teacher, self.decoder = teacher.to(device()).eval(), decoder.to(device()).eval()

    def latents(self, texts: list[str], noise: Tensor, steps: int, scale: float) -> Tensor:
        """Guided samples that start from the noise (N, C, h, w)."""
        return unet.sample(self.teacher, texts, noise, steps, scale)

    @torch.inference_mode()
    def images(self, latents: Tensor) -> np.ndarray:
        """uint8 images of latents (N, C, h, w), as a host decodes them."""
        made = [self.decoder(z) for z in latents.split(ROUND_TRIP)]
        return vae.to_images(torch.cat(made) / 2 + 0.5)

    def redrawn(self, scenes, plans, drawn: np.ndarray) -> np.ndarray:
        """The images decoded from the code that stands for them; there is no encoder."""
        return self.images(torch.from_numpy(unet.code(scenes, plans)).to(device()))

"""Run by a ComfyUI's own Python: predictions of a checkpoint, alone and with a LoRA, as files.

`python comfyui_program.py COMFYUI_DIR JOB.json`; the job names `checkpoint`, `lora` and `inputs`
(x and sigma in ComfyUI's own space, context, pooled) and where `outputs` go. Uses the calls that
CheckpointLoaderSimple, LoraLoaderModelOnly, KSampler and VAEDecode use.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    """Load, predict, load the LoRA, predict again, decode."""
    folder, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    sys.path.insert(0, folder)
    sys.argv = [sys.argv[0], "--cpu", "--force-fp32"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.samplers
    import comfy.sd
    import comfy.utils
    import torch

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(
        job["checkpoint"], output_vae=True, output_clip=False
    )
    inputs = comfy.utils.load_torch_file(job["inputs"])
    pixels = {"height": 8 * inputs["x"].shape[2], "width": 8 * inputs["x"].shape[3]}

    def predict(patcher) -> torch.Tensor:
        comfy.model_management.load_models_gpu([patcher])
        network, more = patcher.model, {}
        if "pooled" in inputs:
            target = {f"target_{name}": value for name, value in pixels.items()}
            more["y"] = network.encode_adm(
                pooled_output=inputs["pooled"], crop_w=0, crop_h=0, device="cpu", **pixels, **target
            )
        with torch.no_grad():
            return network.apply_model(
                inputs["x"], inputs["sigma"], c_crossattn=inputs["context"], **more
            )

    found = {"plain": predict(model)}
    said.clear()
    lora = comfy.utils.load_torch_file(job["lora"])
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    warnings = [line for line in said if "lora" in line.lower() or "NOT LOADED" in line]
    found["with_lora"] = predict(patched)
    sampling = model.get_model_object("model_sampling")
    found["grid"] = comfy.samplers.calculate_sigmas(sampling, "simple", 4)
    if job["decode"]:
        found["picture"] = vae.decode(model.model.process_latent_out(inputs["x"]))
    from safetensors.torch import save_file

    outputs = {name: value.float().cpu().contiguous() for name, value in found.items()}
    save_file(outputs, job["outputs"], {"warnings": json.dumps(warnings)})


if __name__ == "__main__":
    main()

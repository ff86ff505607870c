"""Run by a ComfyUI's own Python: what its Anima says of inputs and of prompts, as files.

`python comfyui_anima_program.py COMFYUI_DIR JOB.json`; the job names the files `denoiser`,
`encoder` and `vae`, `prompts`, `inputs` (x.N and sigma.N of each case, context.N, or prompt.N, the
number of one), how the encoder differs from the published one (`encoder_sizes`), `lora`, a file or
nothing, `text_lora`, one of the encoder and the adapter, an `image` to draw, and where `outputs`
go.
Uses the calls that UNETLoader, CLIPLoader, CLIPTextEncode, LoraLoaderModelOnly and KSampler use.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    """Load, encode, predict; load the LoRA, predict again."""
    folder, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    sys.path.insert(0, folder)
    sys.argv = [sys.argv[0], "--cpu", "--force-fp32"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import comfy.utils
    import torch
    from safetensors.torch import save_file

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    model = comfy.sd.load_diffusion_model(job["denoiser"], {"dtype": torch.float32})
    sizes = {"qwen3_06b_model_config": job["encoder_sizes"]}
    clip = comfy.sd.load_clip([job["encoder"]], model_options=sizes)
    inputs = comfy.utils.load_torch_file(job["inputs"])
    found, told = {}, []
    for number, prompt in enumerate(job["prompts"]):
        tokens = clip.tokenize(prompt)
        (states, facts), *_ = clip.encode_from_tokens_scheduled(tokens)
        ids, weights = facts["t5xxl_ids"], facts["t5xxl_weights"]
        found[f"ids.{number}"] = torch.tensor([pair[0] for pair in tokens["qwen3_06b"][0]])
        found |= {f"states.{number}": states, f"t5.{number}": ids, f"weights.{number}": weights}
        told.append((states, ids[None], weights[None, :, None].to(states)))
    cases = sorted({int(name.split(".")[1]) for name in inputs})

    def predict(patcher, name: str) -> None:
        comfy.model_management.load_models_gpu([patcher])
        network = patcher.model
        with torch.no_grad():
            for number, (states, ids, weights) in enumerate(told):
                found[f"text.{number}"] = network.diffusion_model.preprocess_text_embeds(
                    states, ids, weights
                )
            for case in cases:
                x, sigma = inputs[f"x.{case}"][:, :, None], inputs[f"sigma.{case}"]
                if f"context.{case}" in inputs:
                    more = {"c_crossattn": inputs[f"context.{case}"]}
                else:
                    states, ids, weights = told[int(inputs[f"prompt.{case}"])]
                    more = {"c_crossattn": states, "t5xxl_ids": ids, "t5xxl_weights": weights}
                x0 = network.apply_model(x, sigma, **more)
                found[f"{name}.{case}"] = ((x - x0) / sigma[:, None, None, None, None])[:, :, 0]

    predict(model, "plain")
    said.clear()
    if job["lora"]:
        lora = comfy.utils.load_torch_file(job["lora"])
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        found["patched"] = torch.tensor(len(patched.patches))
        predict(patched, "with_lora")
    warnings = [line for line in said if "lora" in line.lower() or "NOT LOADED" in line]
    sampling = model.get_model_object("model_sampling")
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(job["vae"]))
    found["picture"] = vae.decode(model.model.process_latent_out(inputs["x.0"][:, :, None]))
    asked = job["image"]
    told = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in asked["texts"]]
    empty = torch.zeros(1, 16, asked["height"] // 8, asked["width"] // 8)
    latent = comfy.sample.fix_empty_latent_channels(model, empty, 8)
    noise = comfy.sample.prepare_noise(latent, asked["seed"])
    drawn = comfy.sample.sample(
        model, noise, asked["steps"], asked["cfg"], "euler", "simple", *told, latent
    )
    found["image"] = vae.decode(drawn)
    said.clear()
    lora = comfy.utils.load_torch_file(job["text_lora"])
    patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    warnings += [line for line in said if "lora" in line.lower() or "NOT LOADED" in line]
    told = [patched_clip.encode_from_tokens_scheduled(patched_clip.tokenize(text))
            for text in job["prompts"]]  # fmt: skip
    comfy.model_management.load_models_gpu([patched])
    for number, ((states, facts), *_) in enumerate(told):
        ids, weights = facts["t5xxl_ids"][None], facts["t5xxl_weights"][None, :, None]
        with torch.no_grad():
            found[f"text_with_lora.{number}"] = (
                patched.model.diffusion_model.preprocess_text_embeds(
                    states, ids, weights.to(states)
                )
            )
    found["grid"] = comfy.samplers.calculate_sigmas(sampling, "simple", 4)
    outputs = {k: v.cpu().contiguous() for k, v in found.items()}
    save_file(outputs, job["outputs"], {"warnings": json.dumps(warnings)})


if __name__ == "__main__":
    main()

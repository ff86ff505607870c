"""Run by a ComfyUI's own Python: what its Z-Image says of inputs and of prompts, as files.

`python comfyui_zimage_program.py COMFYUI_DIR JOB.json`; the job names the files `denoiser`,
`encoder` and `vae`, `prompts`, `inputs` (x.N and sigma.N of each case, and prompt.N, the number of
one, or context.N), how the encoder differs from the published one (`encoder_sizes`), `loras` by
name, the cases asked `with_lora`, an `image` to draw, and where `outputs` go.
Uses the calls that UNETLoader, CLIPLoader, CLIPTextEncode, LoraLoaderModelOnly and KSampler use.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    """Load, encode, predict and draw; load each LoRA, predict and draw again."""
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
    sizes = {"qwen3_4b_model_config": job["encoder_sizes"]}
    clip = comfy.sd.load_clip([job["encoder"]], model_options=sizes)
    found, told = {}, []
    for number, prompt in enumerate(job["prompts"]):
        tokens = clip.tokenize(prompt)
        (states, _), *_ = clip.encode_from_tokens_scheduled(tokens)
        found[f"ids.{number}"] = torch.tensor([pair[0] for pair in tokens["qwen3_4b"][0]])
        found[f"text.{number}"] = states
        told.append(states)
    asked = job["image"]
    guided = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in asked["texts"]]
    del clip
    model = comfy.sd.load_diffusion_model(job["denoiser"], {"dtype": torch.float32})
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(job["vae"]))
    inputs = comfy.utils.load_torch_file(job["inputs"])
    cases = sorted({int(name.split(".")[1]) for name in inputs})

    def predict(patcher, name: str, cases: list[int]) -> None:
        comfy.model_management.load_models_gpu([patcher])
        with torch.no_grad():
            for case in cases:
                x, sigma = inputs[f"x.{case}"], inputs[f"sigma.{case}"]
                text = inputs.get(f"context.{case}")
                text = told[int(inputs[f"prompt.{case}"])] if text is None else text
                count = {"num_tokens": text.shape[1]}
                x0 = patcher.model.apply_model(x, sigma, c_crossattn=text, **count)
                found[f"{name}.{case}"] = (x - x0) / sigma[:, None, None, None]

    def draw(patcher, steps: int, cfg: float):
        empty = torch.zeros(1, 16, asked["height"] // 8, asked["width"] // 8)
        noise = comfy.sample.prepare_noise(empty, asked["seed"])
        drawn = comfy.sample.sample(
            patcher, noise, steps, cfg, "euler", "simple", *guided, empty.clone()
        )
        return vae.decode(drawn)

    predict(model, "plain", cases)
    found["picture"] = vae.decode(model.model.process_latent_out(inputs["x.0"]))
    found["image"] = draw(model, asked["steps"], asked["cfg"])
    said.clear()
    for name, path in job["loras"].items():
        lora = comfy.utils.load_torch_file(path)
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        found[f"patched.{name}"] = torch.tensor(len(patched.patches))
        predict(patched, name, job["with_lora"])
        if name == "own":
            found["image.own"] = draw(patched, 4, 1.0)
        comfy.model_management.unload_all_models()
    warnings = [line for line in said if "lora" in line.lower() or "NOT LOADED" in line]
    sampling = model.get_model_object("model_sampling")
    found["grid"] = comfy.samplers.calculate_sigmas(sampling, "simple", 4)
    outputs = {k: v.cpu().float().contiguous() for k, v in found.items()}
    save_file(outputs, job["outputs"], {"warnings": json.dumps(warnings)})


if __name__ == "__main__":
    main()

"""Prints, as JSON, which torch this interpreter imports and what it can compute on."""

from __future__ import annotations

import json
import sys


def facts() -> dict[str, str]:
    """Version, kind of build, accelerator that torch can use ("" for none) or why not."""
    import torch

    torch.ones(2, 2).sum().item()
    build = "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    device = problem = ""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
        try:  # a card that this build has no kernels for is visible, too
            ones = torch.ones(2, 2, device="cuda")
            (ones @ ones).sum().item()
        except RuntimeError as error:
            device, problem = "", f"{device}: {str(error).splitlines()[0]}"
    elif hasattr(torch, "xpu") and torch.xpu.is_available():
        build, device = "XPU", torch.xpu.get_device_name(0)
    elif torch.backends.mps.is_available():
        build, device = "MPS", "the Apple GPU"
    cuda = torch.version.cuda or ""
    found = {"version": torch.__version__, "build": build, "cuda": cuda}
    return found | {"device": device, "problem": problem}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()))

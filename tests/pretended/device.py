"""Builds and registers the pretended accelerator: afterwards torch has a device "pretended"."""

from __future__ import annotations

import hashlib
import os
import shutil
import types
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("device.cpp")
NAME = "pretended"


def missing_tool() -> str | None:
    """What has to be installed to build it, or None."""
    compiler = os.environ.get("CXX", "c++")
    return next((f"no {tool} here" for tool in (compiler, "ninja") if not shutil.which(tool)), None)


def register() -> torch.device:
    """The device, built first where it has not been (half a minute, once for each torch)."""
    from torch.utils.cpp_extension import load

    version = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpdmd-studio-tests"
    folder = cache / f"pretended-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"pretended_{version}"
    load(name, [str(SOURCE)], build_directory=str(folder), extra_cflags=["-O1"])
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device(NAME)


def _module() -> types.ModuleType:
    """What torch asks `torch.pretended`."""
    module = types.ModuleType(f"torch.{NAME}")
    answers: dict[str, object] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "_is_in_bad_fork": False, "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
        "get_rng_state": torch.zeros(1, dtype=torch.uint8), "set_rng_state": None,
        "manual_seed_all": None, "empty_cache": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer, **__: answer)
    return module

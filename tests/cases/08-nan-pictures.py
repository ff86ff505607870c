"""NaN or infinite latents become black pictures with exit code 0 (fp16 overflow, an absurd prompt weight); compare measures them like any other.

Usage: python 08-nan-pictures.py CHECKOUT      exit 1 while the product is wrong, 0 once it is right.
"""
import atexit, contextlib, importlib.util, io, json, os, shutil, struct, sys, tempfile, traceback, warnings
from pathlib import Path

warnings.filterwarnings("ignore")
ROOT = Path(sys.argv[1]).resolve()
WORK = Path(tempfile.mkdtemp(prefix="case-"))
atexit.register(shutil.rmtree, WORK, True)
os.environ.update(DPDMD_HOME=str(WORK / "home"), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
sys.path.insert(0, str(ROOT / "tests"))  # tests/checkpoints.py: random weights in the real layouts
sys.path = [p for p in sys.path if p != str(ROOT)]
spec = importlib.util.spec_from_file_location("dpdmd_studio", ROOT / "__init__.py")
sys.modules["dpdmd_studio"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["dpdmd_studio"])
try:
    from dpdmd_studio.cli import main
except ModuleNotFoundError:  # the tree before the redesign
    from dpdmd_studio.cli import main

FAILED = []
TINY = "--steps 1 --batch-size 1 --student-rank 2 --fake-rank 2 --fake-updates 1 --resolution 32x32 --preview-every 0 --warmup-steps 0 --dtype float32".split()


def run(*argv):
    """(exit code or "crash", stdout, stderr) of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code = "crash"
            err.write("".join(traceback.format_exception(error)[-3:]))
    return code, out.getvalue(), err.getvalue()


def sample(checkpoint, *more, prompt="a cat"):
    folder = Path(tempfile.mkdtemp(dir=WORK))
    return *run("sample", checkpoint, "--prompt", prompt, "--seeds", "0", "--steps", "2",
                "--resolution", "32x32", "--output", folder, *more), folder


def check(what, right, got):
    text = " ".join(str(got).split())[-300:]
    print(("right: " if right else "WRONG: ") + what + "\n       got: " + text.encode("ascii", "backslashreplace").decode())
    if not right:
        FAILED.append(what)


def done():
    sys.exit(1 if FAILED else 0)

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
torch.manual_seed(0)


def pair(name, out, into, rank=2, alpha=1.0, ends=(".lora_down.weight", ".lora_up.weight")):
    state = {name + ends[0]: torch.randn(rank, into) * 0.1, name + ends[1]: torch.randn(out, rank) * 0.1}
    return state | ({name + ".alpha": torch.tensor(alpha)} if alpha is not None else {})


def save(name, state, metadata=None):
    save_file({k: v.clone().contiguous() for k, v in state.items()}, WORK / name, metadata)
    return WORK / name

import checkpoints


import numpy as np
from PIL import Image

def black(folder):
    return [p.name for p in sorted(folder.glob("*.png")) if not np.asarray(Image.open(p)).any()]

sd1 = checkpoints.save(WORK / "sd1.safetensors", checkpoints.file_state(checkpoints.sd1()))
code, out, err, folder = sample(sd1, prompt="(cat:" + "9" * 44 + ")")
check("a weight whose conditioning overflows: an error or a warning", code == 2 or "finite" in err.lower() or "nan" in err.lower() or not black(folder), (code, black(folder), err))
state = load_file(sd1)
key = "model.diffusion_model.middle_block.0.in_layers.2.weight"
state[key] = (state[key].float() * 2e4).half()
wide = save("wide.safetensors", state)
code, out, err, folder = sample(wide, "--dtype", "float16", "--seeds", "0-3")
check("fp16 overflow while sampling: an error or a warning that names --dtype bfloat16", not black(folder) or "dtype" in err, (code, "black: %s" % black(folder), err))
done()

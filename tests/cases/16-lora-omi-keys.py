"""LoRAs in OneTrainer's OMI form: `clip_l.`/`clip_g.` for the text encoders, `...attn.qkv.0` for SD3's thirds.

Usage: python 16-lora-omi-keys.py CHECKOUT      exit 1 while the product is wrong, 0 once it is right.
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


sdxl = checkpoints.save(WORK / "sdxl.safetensors", checkpoints.file_state(checkpoints.sdxl()))
state = pair("unet.input_blocks.3.1.transformer_blocks.0.attn1.to_q", 64, 64)
state |= pair("clip_l.text_model.encoder.layers.0.mlp.fc1", 64, 32) | pair("clip_g.text_model.encoder.layers.0.mlp.fc1", 128, 64)
code, out, err, _ = sample(sdxl, "--with-lora", save("x.safetensors", state))
check("SDXL: clip_l. and clip_g. are text encoders", code == 0, (code, err))
sd35 = checkpoints.save(WORK / "sd35.safetensors", checkpoints.file_state(checkpoints.sd3(medium35=True, with_t5=False)))
code, out, err, _ = sample(sd35, "--with-lora", save("q.safetensors", pair("transformer.joint_blocks.0.x_block.attn.qkv.0", 64, 64)))
check("SD3: qkv.0 is the q third", code == 0, (code, err))
done()

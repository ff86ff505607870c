"""An SDXL v-prediction file that says so in ModelSpec metadata only (kohya writes no v_pred key): inspect says eps, sample draws it as eps without a word.

Usage: python 23-vpred-in-metadata.py CHECKOUT      exit 1 while the product is wrong, 0 once it is right.
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


state = {k: v.half() for k, v in checkpoints.file_state(checkpoints.sdxl()).items()}
path = save("v.safetensors", state, {"modelspec.prediction_type": "v", "modelspec.architecture": "stable-diffusion-xl-v1-base"})
code, out, err = run("inspect", "--json", path)
facts = json.loads(out)
check("inspect: v, or a word that metadata and keys disagree", facts["prediction"] == "v" or any("prediction" in str(v) for k, v in facts.items() if k in ("problem", "notes", "note")), facts["prediction"])
code, out, err, _ = sample(path)
check("sample: v, or a note", "predict" in err.lower(), (code, err))
done()

"""infotext: a settings line that does not begin with 'Steps: n, ' becomes part of the prompt; a prompt's own line 'Steps: 3, ...' cuts the prompt off.

Usage: python 19-infotext-settings-line.py CHECKOUT      exit 1 while the product is wrong, 0 once it is right.
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

from dpdmd_studio.app.prompts.images import infotext_prompts

for text in ("a red fox\nSampler: Euler, Steps: 20, Seed: 1, Size: 512x512", "a red fox\nSteps: 20| Seed: 1| Sampler: Euler| Size: 512x512"):
    found = infotext_prompts(text)[0]
    check("the prompt is 'a red fox'", found == "a red fox", found)
found = infotext_prompts("an instruction sheet\nSteps: 3, then jump\nNegative prompt: ugly\nSteps: 20, Sampler: Euler, Seed: 1, Size: 8x8")
check("only the last line is settings; the negative prompt is found", "then jump" in found[0] and found[1] == "ugly", found)
done()

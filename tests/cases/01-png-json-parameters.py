"""PNGs of SwarmUI, Fooocus and RuinedFooocus hold JSON under `parameters`; it is trained on as a prompt, word for word.

Usage: python 01-png-json-parameters.py CHECKOUT      exit 1 while the product is wrong, 0 once it is right.
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

from PIL import Image, PngImagePlugin
from dpdmd_studio.core.errors import PromptError
from dpdmd_studio.app.prompts.reading import read_prompts

KINDS = {
    "swarm": json.dumps({"sui_image_params": {"prompt": "a red fox", "negativeprompt": "ugly", "seed": 1, "steps": 20}}, indent=2),
    "fooocus": json.dumps({"prompt": "a red fox", "negative_prompt": "", "steps": 30, "base_model": "x"}),
    "ruined": json.dumps({"Prompt": "a red fox", "Negative": "", "steps": 30, "software": "RuinedFooocus"}),
}
for kind, text in KINDS.items():
    folder = WORK / kind
    folder.mkdir()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(folder / "a.png", pnginfo=info)
    try:
        found = read_prompts(folder).prompts
    except PromptError as error:
        found = error  # counting it as "without a prompt" is right, too
    check(f"{kind}: 'a red fox', or the picture counted as one without a prompt",
          isinstance(found, PromptError) or found == ("a red fox",), found)
done()

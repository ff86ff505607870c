"""inspect: an alpha of no elements crashes it or shows another tensor's bytes as scale; a scalar half crashes it; a bf16 alpha is left out.

Usage: python 13-inspect-odd-loras.py CHECKOUT      exit 1 while the product is wrong, 0 once it is right.
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

def write(name, entries):
    table, body = {}, b""
    for key, (dtype, shape, content) in entries.items():
        table[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(table).encode()
    (WORK / name).write_bytes(struct.pack("<Q", len(text)) + text + body)
    return WORK / name

stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
halves = {f"{stem}.lora_down.weight": ("F32", [2, 32], bytes(256)), f"{stem}.lora_up.weight": ("F32", [32, 2], bytes(256))}
code, out, err = run("inspect", write("a.safetensors", halves | {f"{stem}.alpha": ("F32", [0], b"")}))
check("empty alpha at the end of the file", code in (0, 2), (code, err))
first = {f"{stem}.alpha": ("F32", [0], b""), f"{stem}.lora_down.weight": ("F32", [2, 32], struct.pack("<f", 8.5) * 64)}
code, out, err = run("inspect", write("b.safetensors", first | {f"{stem}.lora_up.weight": halves[f"{stem}.lora_up.weight"]}))
check("empty alpha before another tensor: no scale is made up", "4.25" not in out, out[:600])
scalar = {k: ("F32", [], bytes(4)) for k in halves}
code, out, err = run("inspect", write("c.safetensors", scalar))
check("halves without axes", code in (0, 2), (code, err))
code, out, err = run("inspect", write("d.safetensors", halves | {f"{stem}.alpha": ("BF16", [], struct.pack("<f", 1.0)[2:])}))
check("a bf16 alpha's scale is shown", any(line.split() == ["scales", "0.5"] for line in out.splitlines()), out[:500])
done()

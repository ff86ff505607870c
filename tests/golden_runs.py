"""Goldens: what this version does, written down, so that a restructuring cannot change it unseen.

    python tests/golden_runs.py --write KIND ...     rewrites tests/goldens/KIND.json

A golden is remade only where its behaviour changes on purpose, in a commit of its own. Everything
goes through the command line's entry and through what the hosts load; the imports of both stand in
this module alone. Each golden notes the machine that made it: there the numbers must be the same to
the bit, elsewhere within the rounding of another CPU or torch.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import conftest  # noqa: F401  (mounts the package where this file is the program)
import numpy as np
import torch
from dpdmd_studio import cli
from dpdmd_studio.trainer.loading import prediction_check
from PIL import Image
from safetensors.torch import load_file, save_file

prediction_check.MAX_LATENT_SIZE = prediction_check.MIN_LATENT_SIZE  # as tiny_runs.py says

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).parent / "goldens"
REMAKE = "python tests/golden_runs.py --write"
RELATIVE, ROOM, PIXELS = 2e-2, 5e-4, 2
"""How far numbers of another machine may be off, which adds in another order and, in bfloat16,
rounds to three digits; distances are small differences of large numbers."""
VERSION = re.compile(r"(?<=DP-DMD Studio )\d+\.\d+\.\d+\w*|(?<=dpdmd-studio )\d+\.\d+\.\d+\w*")
BETWEEN_TAGS = re.compile(r">\s+<")
HASH = re.compile(r"\b(?:(?:0x)?[0-9a-f]{64}|[0-9a-f]{8,12})\b")
TINY = {
    "steps": 2, "batch_size": 2, "student_rank": 2, "fake_rank": 3, "fake_updates": 2,
    "teacher_steps": 8, "resolution": "32x32", "preview_every": 0, "student_lr": 1e-2,
    "warmup_steps": 1, "attention": "sdpa", "evaluate_every": 250, "save_every": 100,
    "diversity_weight": 0.05, "keep": "best", "num_anchored_steps": 1, "gradient_steps": "random",
}  # fmt: skip
PROMPTS = ("a cat", "a {red|blue} dog", "a (tall:1.2) house")
FAMILIES: dict[str, Callable[[], checkpoints.Tiny]] = {
    "sd1": checkpoints.sd1,
    "sdxl": checkpoints.sdxl,
    "sd3": checkpoints.sd3,
    "sd35": lambda: checkpoints.sd3(medium35=True, with_t5=False),
}


# The machine


@cache
def fingerprint() -> dict[str, str]:
    """What decides how sums are rounded."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums are added in the order of one thread while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The command line


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def run(*argv: object, home: Path | None = None) -> Said:
    """One command in this process, with a data folder of its own where one is named."""
    out, err = io.StringIO(), io.StringIO()
    place = {} if home is None else {"DPDMD_HOME": str(home)}
    caught = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with variables(place), one_thread(), caught[0], caught[1]:
        try:
            code = cli.main([str(word) for word in argv])
        except SystemExit as ended:  # argparse, after --help
            code = int(ended.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def done(*argv: object, home: Path) -> Any:
    """What a command prints as JSON; it must succeed."""
    said = run(*argv, "--json", home=home)
    assert said.code == 0, said.err
    return json.loads(said.out)


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def options(settings: Mapping[str, Any]) -> list[str]:
    """Settings of a distillation as options."""
    found = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found.append(f"--{option}={value}")
    return found


class Workplace:
    """A folder with checkpoints, prompts and a data folder, in which commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self._count = 0

    def checkpoint(self, name: str) -> Path:
        """A tiny checkpoint of a family, made once."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            checkpoints.save(path, checkpoints.file_state(FAMILIES[name]()))
        return path

    def prompts(self, texts: Sequence[str] = PROMPTS, name: str = "prompts.txt") -> Path:
        """A prompts file."""
        path = self.folder / name
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    def style(self) -> Path:
        """Someone's LoRA for the tiny SD 1.x checkpoint."""
        path = self.folder / "style.safetensors"
        generator = torch.Generator().manual_seed(5)
        state = {}
        for module, rows, columns in STYLE:
            name = f"lora_unet_{module}"
            state[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator) * 0.2
            state[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator) * 0.2
            state[f"{name}.alpha"] = torch.tensor(1.0)
        save_file(state, path, {"ss_output_name": "style"})
        return path

    def portable(self, text: str) -> str:
        """A text without this machine's paths and this version's number."""
        for path, name in ((self.home, "HOME"), (self.folder, "FOLDER"), (ROOT, "ROOT")):
            text = text.replace(str(path), f"{{{name}}}")
        text = re.sub(r"(?<=\{FOLDER\}/made)-\d+", "", text)
        text = re.sub(r"\{ROOT\}[\w/\\]*(?=[/\\]shapes-)", "{ASSETS}", text)
        return VERSION.sub("{VERSION}", text)

    def distill(self, family: str, *more: object, **settings: Any) -> tuple[Path, Path]:
        """(run folder, LoRA) of a distillation that was brought to its end."""
        self._count += 1
        folder = self.folder / f"made-{self._count}"
        folder.mkdir()
        run_folder, output = folder / "run", folder / "student.safetensors"
        words = ["distill", self.checkpoint(family), "--prompts", self.prompts()]
        words += ["--output", output, "--run", run_folder]
        found = done(*words, *more, *options(TINY | settings), home=self.home)
        assert found["finished"]
        return run_folder, output


STYLE = (
    ("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 32, 32),
    ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 32, 32),
    ("up_blocks_1_attentions_0_transformer_blocks_0_ff_net_2", 32, 128),
)


@contextlib.contextmanager
def workplace() -> Iterator[Workplace]:
    """A new workplace while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        yield Workplace(Path(folder).resolve())


# Comparing


def assert_same(found: Any, golden: Any, made_by: Mapping[str, str], *, where: str = "") -> None:
    """Equal to the bit on the machine that made the golden; elsewhere numbers may be rounded."""
    exact = dict(made_by) == fingerprint()
    problems = list(differences(found, golden, exact=exact, where=where))
    assert not problems, "\n".join(problems[:20])


def differences(found: Any, golden: Any, *, exact: bool, where: str = "") -> Iterator[str]:
    """Where two JSON values differ."""
    if isinstance(golden, dict) and isinstance(found, dict):
        if exact and list(found) != list(golden) and found.keys() == golden.keys():
            yield f"{where}: other order {list(found)}"
        for name in [*golden, *(name for name in found if name not in golden)]:
            if name not in found or name not in golden:
                yield f"{where}.{name}: {'gone' if name in golden else 'new'}"
            else:
                yield from differences(
                    found[name], golden[name], exact=exact, where=f"{where}.{name}"
                )
    elif isinstance(golden, list) and isinstance(found, list):
        if len(found) != len(golden):
            yield f"{where}: {len(found)} items, golden has {len(golden)}"
        for place, pair in enumerate(zip(found, golden, strict=False)):
            yield from differences(*pair, exact=exact, where=f"{where}[{place}]")
    elif not _equal(found, golden, exact, ROOM if "distance" in where else 1e-6):
        yield f"{where}: {found!r}, golden has {golden!r}"


def _equal(found: Any, golden: Any, exact: bool, room: float) -> bool:
    if type(found) is not type(golden):
        return False
    if isinstance(golden, str):  # white space between tags is nothing that a browser shows
        found, golden = BETWEEN_TAGS.sub("><", found), BETWEEN_TAGS.sub("><", golden)
    if exact or not isinstance(golden, float | str):
        return found == golden or (found != found and golden != golden)
    if isinstance(golden, float):
        return math.isclose(found, golden, rel_tol=RELATIVE, abs_tol=room)
    return HASH.sub("<hash>", found) == HASH.sub("<hash>", golden)


def assert_same_tensors(found: Path, golden: Path, made_by: Mapping[str, str]) -> None:
    """Two safetensors files hold the same tensors in the same order."""
    ours, theirs = load_file(found), load_file(golden)
    assert tensor_names(found) == tensor_names(golden)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape, name
        if dict(made_by) == fingerprint():
            assert torch.equal(ours[name], value), name
        else:
            room = RELATIVE * float(value.abs().max()) + 1e-6
            torch.testing.assert_close(ours[name], value, rtol=RELATIVE, atol=room)


# Reading files


def lines(path: Path) -> list[dict[str, Any]]:
    """Metrics of a run without what was measured of the machine."""
    measured = ("seconds", "memory_bytes")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in one.items() if name not in measured} for one in found]


def header(path: Path) -> dict[str, Any]:
    """A safetensors file's header as it stands in the file."""
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def tensor_names(path: Path) -> list[str]:
    """Names in the order of the header, each with its place in the file."""
    return [name for name in header(path) if name != "__metadata__"]


def digest(tensor: torch.Tensor) -> str:
    """SHA256 of a tensor's bytes."""
    flat = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def tensors_digest(path: Path) -> str:
    """One SHA256 of all names and tensors of a file."""
    whole = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)} {digest(tensor)}\n".encode())
    return whole.hexdigest()


def pixels_digest(path: Path) -> str:
    """SHA256 of a picture's pixels."""
    with Image.open(path) as image:
        array = np.asarray(image.convert("RGB"))
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


# The updates


OBJECTIVES = ("dp_dmd", "dmd", "no_detach", "detach_only")
V_PREDICTION = {"prediction": "v", "zero_terminal_snr": "yes"}
VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient_steps all": ("sd1", {"gradient_steps": "all"}),
    "gradient_steps last": ("sd35", {"gradient_steps": "last"}),
    "gradient_steps random, two anchored": ("sd35", {"num_anchored_steps": 2, "seed": 3}),
    "gradient_steps all, two anchored": (
        "sd35",
        {"gradient_steps": "all", "num_anchored_steps": 2},
    ),
    "fresh roll-outs": ("sd35", {"share_rollouts": False}),
    "fresh roll-outs, dmd": ("sd1", {"share_rollouts": False, "objective": "dmd"}),
    "anchor_target denoised": ("sd1", {"anchor_target": "denoised", "anchor_step": 3}),
    "anchor_target denoised, flow": ("sd35", {"anchor_target": "denoised"}),
    "micro-batches": ("sd35", {"batch_size": 3, "micro_batch_size": 2}),
    "micro-batches, every step": (
        "sd35",
        {"batch_size": 3, "micro_batch_size": 1, "gradient_steps": "all", "share_rollouts": False},
    ),
    "gradient checkpointing": ("sdxl", {"gradient_checkpointing": True}),
    "moving average": ("sd35", {"ema_decay": 0.5, "steps": 3}),
    "base in int8": ("sd1", {"base_weights": "int8"}),
    "offloads": ("sd35", {"offload_base": True, "offload_optimizer": True}),
    "head start of the fake score": ("sd35", {"fake_head_start": 2}),
    "guidance_rescale": ("sd1", {**V_PREDICTION, "guidance_rescale": 0.7, "zero_negative": True}),
    "negative prompt": ("sd1", {"teacher_negative": "a blur", "clip_skip": 2}),
    "two resolutions": ("sd35", {"resolution": "32x32,48x32", "steps": 3, "seed": 1}),
    "attention layers only": ("sdxl", {"lora_layers": "attention", "final_lr_fraction": 0.0}),
    "two steps, bfloat16": ("sd35", {"num_steps": 2, "dtype": "bfloat16"}),
    "teacher with a LoRA": ("sd1", {}),
}


def update_cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Case -> (family, settings)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in FAMILIES:
        # random weights without a norm of q and k grow a rounding a hundredfold in two updates
        calm = {"student_lr": 1e-4} if name == "sd3" else {}
        for objective in OBJECTIVES:
            found[f"{name}, {objective}"] = (name, {"objective": objective, **calm})
    for objective in OBJECTIVES:
        found[f"sd1 v, {objective}"] = ("sd1", {**V_PREDICTION, "objective": objective})
    return found | VARIATIONS


def updates(place: Workplace, case: str) -> dict[str, Any]:
    """Metrics of a few updates, and a hash of what they made."""
    family, settings = update_cases()[case]
    more = ["--teacher-lora", f"{place.style()}:0.8"] if case == "teacher with a LoRA" else []
    folder, lora = place.distill(family, *more, **settings)
    # no hash of the file itself: its metadata say when it was made
    return {"metrics": lines(folder / "metrics.jsonl"), "lora": tensors_digest(lora)}


# LoRA files


LORAS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "sd1": ("sd1", (), {"ema_decay": 0.5}),
    "sd1, peft": ("sd1", ("--format", "peft"), {}),
    "sd1 v": ("sd1", (), V_PREDICTION),
    "sd1, attention": ("sd1", (), {"lora_layers": "attention", "objective": "dmd"}),
    "sd1, LoRA of the teacher": ("sd1", ("--teacher-lora", "{STYLE}:0.8"), {}),
    "sd1, LoRA of the teacher included": (
        "sd1",
        ("--teacher-lora", "{STYLE}:0.8", "--include-teacher-loras"),
        {},
    ),
    "sdxl": ("sdxl", (), {"num_anchored_steps": 2}),
    "sdxl, peft": ("sdxl", ("--format", "peft"), {}),
    "sd3": ("sd3", (), {}),
    "sd35": ("sd35", (), {"num_steps": 2, "teacher_negative": "a blur"}),
    "sd35, peft": ("sd35", ("--format", "peft"), {}),
}
DATED = (
    "ss_training_started_at", "ss_training_finished_at", "modelspec.date", "ss_session_id",
)  # fmt: skip


def loras(place: Workplace, case: str) -> dict[str, Any]:
    """A LoRA of one update: tensors in the file's order, metadata, recipe."""
    family, words, settings = LORAS[case]
    more = [word.replace("{STYLE}", str(place.style())) for word in words]
    _, lora = place.distill(family, *more, **{"steps": 1, "fake_updates": 1, **settings})
    return lora_facts(place, lora)


def lora_facts(place: Workplace, lora: Path) -> dict[str, Any]:
    """All that a LoRA file says, less when it was made."""
    found, tensors = header(lora), load_file(lora)
    metadata = {
        name: place.portable(value)
        for name, value in found.pop("__metadata__").items()
        if name not in DATED
    }
    recipe = next(value for name, value in metadata.items() if name == "dpdmd.recipe")
    described = []
    for name, facts in found.items():
        values = tensors[name].double()
        size = [float(f"{value:.7g}") for value in (values.norm(), values.abs().max())]
        described.append([name, facts["dtype"], facts["shape"], digest(tensors[name])[:12], *size])
    starts = [facts["data_offsets"][0] for facts in found.values()]
    return {
        "metadata": metadata,
        "recipe": json.loads(recipe),
        "in order of their bytes": starts == sorted(starts),
        "tensors": described,
    }


# Help


COMMANDS = (
    "", "distill", "estimate", "check", "resume", "sample", "compare", "package", "work", "runs",
    "runs list", "runs start", "runs stop", "runs move", "runs duplicate", "runs rename",
    "runs delete", "runs restore", "runs log", "gui", "settings", "settings export", "inspect",
    "demo",
)  # fmt: skip
COLUMNS = "100"


def help_text(place: Workplace, case: str) -> dict[str, Any]:
    """What `--help` prints of a command, and which commands it names below itself."""
    with variables({"COLUMNS": COLUMNS, "NO_COLOR": "1"}):
        said = run(*case.split(), "--help", home=place.home)
    assert said.code == 0 and not said.err
    lines = place.portable(said.out).splitlines()
    named = [match[1] for line in lines if (match := re.match(r"    ([a-z]+)(?:  |$)", line))]
    return {"lines": lines, "commands": named}


def _other_argparse(text: str) -> str:
    """A help text with nothing that differs between versions of argparse."""
    words = " ".join(text.split()).replace(" (default: True)", "")
    return re.sub(r"\[-\s|", "[", words)


def check_help(place: Workplace, case: str) -> None:
    """Compare a help text: letter by letter under the Python that wrote the golden."""
    golden, found = read("help"), help_text(place, case)
    expected = golden["cases"][case]
    if golden["python"] == python():
        assert found == expected
    assert found["commands"] == expected["commands"]
    ours, theirs = (_other_argparse("\n".join(text["lines"])) for text in (found, expected))
    assert ours == theirs


def python() -> str:
    """The version of Python that decides how argparse prints."""
    return ".".join(map(str, sys.version_info[:2]))


# Reports


def reports(place: Workplace, case: str) -> dict[str, Any]:
    """A comparison's report, or what a run that is measured leaves."""
    return compared(place) if case == "compare" else measured(place)


COLOURS = ("red", "blue", "green", "grey", "dark", "pale")
MORE_PROMPTS = tuple(f"a {colour} {{cat|dog}}" for colour in COLOURS)


def compared(place: Workplace) -> dict[str, Any]:
    """The `compare` command with a LoRA at two strengths and a style in every arm."""
    _, lora = place.distill("sd1")
    output = place.folder / "compared"
    words = ["compare", place.checkpoint("sd1"), "--prompts", place.prompts(MORE_PROMPTS[:3])]
    words += ["--training-prompts", place.prompts((MORE_PROMPTS[0],), "trained.txt")]
    words += ["--lora", lora, "--lora", f"{lora}:0.5", "--with-lora", f"{place.style()}:0.3"]
    words += ["--teacher-steps", 2, "--seeds", "0-1", "--resolution", "32x32"]
    found = done(*words, "--output", output, home=place.home)
    return {"printed": _without_times(found, place), **_report(output, place)}


def measured(place: Workplace) -> dict[str, Any]:
    """A run that draws previews, is measured on prompts set aside, and ends in a report."""
    place.prompts((*PROMPTS, *MORE_PROMPTS, "a tree"), "many.txt")
    folder, lora = place.distill(
        "sd1", "--prompts", place.folder / "many.txt", evaluation_prompts=2, evaluate_every=1,
        preview_every=1, save_every=1, steps=2,
    )  # fmt: skip
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    shown = [name for name in files if "/." not in f"/{name}" and name not in CHANGING_FILES]
    return {
        "files": shown,
        "metrics": lines(folder / "metrics.jsonl"),
        "evaluations": _without_times(lines(folder / "evaluations.jsonl"), place),
        "trained on": (folder / "prompts.txt").read_text(encoding="utf-8").splitlines(),
        "measured on": (folder / "evaluation-prompts.txt").read_text("utf-8").splitlines(),
        "previews": {p.name: pixels_digest(p) for p in sorted(folder.glob("previews/*.png"))},
        "result": _without_times(json.loads((folder / "result.json").read_text("utf-8")), place),
        "lora": tensors_digest(lora),
        **_report(folder / "report", place),
    }


CHANGING_FILES = ("attention.json", "memory.json", "lock.json")
TIMES = ("seconds", "memory_bytes", "seconds_per_picture", "Machine")


def _report(folder: Path, place: Workplace) -> dict[str, Any]:
    numbers = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    sheets = {path.name: pixels_digest(path) for path in sorted(folder.glob("*.png"))}
    return {"report": _without_times(numbers, place), "sheets": sheets}


def _without_times(value: Any, place: Workplace) -> Any:
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if name not in TIMES}
        return {name: _without_times(item, place) for name, item in kept.items()}
    if isinstance(value, list):
        return [_without_times(item, place) for item in value]
    return place.portable(value) if isinstance(value, str) else value


# Hosts


def hosts(place: Workplace, case: str) -> Any:
    """Nodes, pages or the web UI's parts."""
    import golden_hosts

    return getattr(golden_hosts, case)(place)


# Writing


@dataclass(frozen=True)
class Kind:
    """A golden file: its cases, and what is found in a workplace for one of them."""

    cases: Callable[[], Sequence[str]]
    find: Callable[[Workplace, str], Any]


KINDS = {
    "updates": Kind(lambda: list(update_cases()), updates),
    "loras": Kind(lambda: list(LORAS), loras),
    "help": Kind(lambda: COMMANDS, help_text),
    "reports": Kind(lambda: ("compare", "run"), reports),
    "hosts": Kind(lambda: ("nodes", "pages", "webui"), hosts),
}


SHORT_LIST = re.compile(r"\[\n(?: +(?:\"[^\"\n]{0,100}\"|-?[\d.e+-]+|\[[\d, ]*\]),?\n){1,8} +\]")


def _in_one_line(found: re.Match[str]) -> str:
    """A list of few short items as it fits into a line: goldens are read by people, too."""
    return json.dumps(json.loads(found[0]), ensure_ascii=False)


def read(kind: str) -> dict[str, Any]:
    """The golden file of a kind."""
    return json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))


def check(kind: str, place: Workplace, case: str) -> None:
    """Compare what is found now with the golden."""
    golden = read(kind)
    found, wanted = json.loads(json.dumps(KINDS[kind].find(place, case))), golden["cases"][case]
    if kind == "loras" and golden["made_by"] != fingerprint():
        # Adam's first step is the sign of a gradient, which rounding decides where it is about 0
        for lora in (found, wanted):
            lora["tensors"] = [row[:3] for row in lora["tensors"]]
    assert_same(found, wanted, golden["made_by"], where=case)


def write(kind: str) -> None:
    """Rewrite a golden file; what is found twice must be the same."""
    found = []
    for _ in range(2):
        with workplace() as place:
            found.append({case: KINDS[kind].find(place, case) for case in KINDS[kind].cases()})
    first, second = found
    problems = list(differences(second, first, exact=True))
    assert not problems, "not the same twice:\n" + "\n".join(problems[:20])
    content = {"remake": f"{REMAKE} {kind}", "made_by": fingerprint()}
    content |= {"python": python(), "cases": first}
    text = re.sub(SHORT_LIST, _in_one_line, json.dumps(content, indent=1, ensure_ascii=False))
    (FOLDER / f"{kind}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", nargs="+", choices=sorted(KINDS), required=True)
    for name in parser.parse_args().write:
        write(name)
        sys.stdout.write(f"{FOLDER / name}.json\n")

"""Everything that only a GPU can tell, in parts of under ten minutes that can be taken up again.

    python benchmarks/gpu/run.py --output FOLDER [--part NAME ...] [--budget 540] [--list]

A part measures its cases one after the other and writes each row at once into FOLDER/PART.json.
What is there is not measured again: a part that ran out of its budget goes on with the next case.
Without --part every part runs in a process of its own. `table.py FOLDER` makes the tables. Networks
have random weights and are made on the device; nothing is downloaded. `--tiny --device cpu
--dtype float32` tries all of it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import mounting  # noqa: E402, F401
import torch  # noqa: E402
from dpdmd_studio.core.errors import SettingsError  # noqa: E402
from kernel_parts import attention_cases, profile_cases, speed_cases  # noqa: E402
from measuring import Options, Row, Unavailable, environment, release  # noqa: E402
from update_parts import cap_cases, copies_cases, estimate_cases, memory_cases, scaling_cases  # noqa: E402

Cases = dict[str, Callable[[], Row]]
PARTS: dict[str, Callable[[Options], Cases]] = {
    "caps": cap_cases,
    "copies-sdxl": partial(copies_cases, "sdxl"),
    "copies-sd3": partial(copies_cases, "sd3"),
    "memory-sdxl": partial(memory_cases, "sdxl"),
    "memory-sd3": partial(memory_cases, "sd3"),
    "memory-sd1": partial(memory_cases, "sd1"),
    "profile": profile_cases,
    "attention": attention_cases,
    "estimate": estimate_cases,
    "speed": speed_cases,
    "scaling": scaling_cases,
    "copies-sd1": partial(copies_cases, "sd1"),
}


def say(text: str) -> None:
    """Tell who waits."""
    print(text, flush=True)


def attempt(case: Callable[[], Row], options: Options) -> Row:
    """A case's row; memory that runs out and what is missing are results, too."""
    try:
        return case()
    except Unavailable as reason:
        return {"skipped": str(reason)}
    except ImportError as error:
        return {"skipped": f"missing package: {error}"}
    except SettingsError as error:  # a setting whose package is missing
        return {"skipped": str(error).splitlines()[0][:160]}
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).splitlines()[0][:160]}
    except Exception as error:  # one broken case must not cost the others their turn
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        release(options)


def run_part(name: str, options: Options, chosen: argparse.Namespace) -> bool:
    """Measure what is missing of a part; whether it is complete."""
    path = chosen.output / f"{name}.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    facts = environment(options)
    if known and known["environment"] != facts:
        raise SystemExit(f"{path} comes from another machine, version or --tiny. "
                         "Give another --output.")  # fmt: skip
    rows: dict[str, Row] = known.get("rows", {})
    if chosen.retry:
        rows = {case: row for case, row in rows.items() if not row.keys() & {"error", "skipped"}}
    started = time.monotonic()
    cases = {case: work for case, work in PARTS[name](options).items() if chosen.only in case}
    for case, work in cases.items():
        if case in rows:
            continue
        if time.monotonic() - started > chosen.budget:
            say(f"{name}: the budget is used up, {len(cases) - len(rows)} cases are left")
            break
        rows[case] = attempt(work, options)
        say(f"{name}: {case}: {brief(rows[case])}")
        command = f"python benchmarks/gpu/run.py --part {name}"
        write(path, {"environment": facts, "command": command, "rows": rows})
    return all(case in rows for case in cases)


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file whole."""
    partial_file = path.with_suffix(".partial")
    partial_file.write_text(json.dumps(content, indent=1))
    os.replace(partial_file, path)


def brief(row: Row) -> str:
    """A row in a few words."""
    shown = [f"{row['seconds']:.4g} s"] if "seconds" in row else []
    shown += [f"{row['allocated'] / 2**30:.2f} GiB"] if row.get("allocated") else []
    shown += [str(row[key]) for key in ("skipped", "out_of_memory", "error") if key in row]
    return ", ".join(shown)


def main(arguments: list[str] | None = None) -> int:
    """0 when all that was asked for is complete, else 3."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu-bench"))
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds it")
    parser.add_argument("--list", action="store_true", help="name the parts and their cases")
    parser.add_argument("--budget", type=float, default=540, help="seconds for a part")
    parser.add_argument("--retry", action="store_true", help="measure failed cases again")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try it on a CPU")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        torch.set_num_threads(1)
    options = Options(chosen.device, chosen.dtype, chosen.tiny, chosen.repeats)
    if chosen.list:
        for name, cases in PARTS.items():
            say(f"{name}: {len(cases(options))} cases")
        return 0
    if options.on_cuda and not torch.cuda.is_available():
        say("There is no CUDA device here. --tiny --device cpu --dtype float32 tries the program.")
        return 2
    chosen.output.mkdir(parents=True, exist_ok=True)
    if chosen.part:
        done = [run_part(name, options, chosen) for name in chosen.part]
        return 0 if all(done) else 3
    given = sys.argv[1:] if arguments is None else arguments
    codes = [subprocess.run([sys.executable, __file__, *given, "--part", name]).returncode
             for name in PARTS]  # fmt: skip
    return 0 if not any(codes) else 3


if __name__ == "__main__":
    sys.exit(main())

"""Gives inputs made up at random to all who read such inputs: headers, LoRAs, configs, recipes,
metadata, infotext, prompts, names, settings and the files of runs.

Does one end in a foreign exception, or take over a second?

    python benchmarks/fuzz.py --seeds 0-1000000 --seconds 300
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import mounting

sys.path.append(str(mounting.ROOT / "tests"))


def main() -> int:
    """Exit status: 0 if every input ended in an answer or in one of our errors, in time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0-10000", metavar="A-B", help="first and last")
    parser.add_argument("--seconds", type=float, default=300.0, metavar="N", help="in all, at most")
    parser.add_argument("--kinds", nargs="*", metavar="KIND", help="default: all")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPDMD_HOME"] = str(Path(folder) / "home")
        return _measure(Path(folder), range(int(first), int(last or first) + 1), options)


def _measure(folder: Path, seeds: range, options: argparse.Namespace) -> int:
    import fuzzing

    kinds = options.kinds or list(fuzzing.KINDS)
    begin, total, wrong = time.monotonic(), 0, []
    print(f"Seeds {seeds.start} to {seeds.stop - 1}, {options.seconds:.0f} seconds at most.\n")
    print("| kind | inputs | last seed | answers | refusals | foreign | slowest (s) | its seed |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for number, kind in enumerate(kinds):
        place = folder / f"{number}"
        place.mkdir()
        left = (begin + options.seconds - time.monotonic()) / (len(kinds) - number)
        found = fuzzing.run(kind, seeds, place, max(left, 0.0))
        total += found.inputs
        seconds, slow = found.slowest
        print(f"| {kind} | {found.inputs:,} | {seeds.start + found.inputs - 1} "
              f"| {found.answered:,} | {found.refused:,} | {len(found.foreign)} "
              f"| {seconds:.3f} | {slow} |", flush=True)  # fmt: skip
        wrong += [f"{kind}, seed {seed}: {lines}" for seed, lines in found.foreign[:5]]
        if seconds > fuzzing.LONGEST:
            wrong.append(f"{kind}, seed {slow}: {seconds:.1f} seconds")
    print(f"\n{total:,} inputs in {time.monotonic() - begin:.0f} seconds.")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

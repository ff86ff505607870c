"""What the sampler costs in a real A1111 or Forge, and what the extension adds to its start.

`python benchmarks/webui_sampling.py WEBUI` (or FORGE), with the variables that
tests/hosts/webui_server.py names. Checkpoint and LoRA have random weights. A small extension beside
ours notes, around the host's sampling loop, its seconds and the batch of every evaluation of the
network. Ways are paired and drawn in turn, the order changing from pair to pair, so that other load
hits both alike; a start with the extension is paired with one without.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mounting import ROOT

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "hosts")]
import webui_files  # noqa: E402
from webui_server import WebUI  # noqa: E402

SCRIPT, FROM_FILE = "DP-DMD few-step LoRAs", "what the LoRA says"
PROMPT, STEPS = "a red circle", 4
WIDTHS = (64, 128, 256, 256)
"""Channels of A1111's UNet: wide enough that it takes nearly all of the time at 512x512."""
FAST_ATTENTION = {"WEBUI": ["--opt-sdp-attention"], "FORGE": []}
"""Forge takes it by itself; A1111's choice on a CPU is many times slower at 512x512."""
PROBE = """
import time
from modules import script_callbacks, sd_samplers_common, shared

KIND, SEEN, BATCHES = sd_samplers_common.Sampler, [0.0, 0.0], []
launch = getattr(KIND, "dpdmd_launch", None) or KIND.launch_sampling
KIND.dpdmd_launch = launch


def network():
    objects = getattr(shared.sd_model, "forge_objects", None)
    return (objects.unet if objects is not None else shared.sd_model).model.diffusion_model


def launched(self, steps, function):
    count = lambda module, inputs: BATCHES.append(len(inputs[0]))
    hook = network().register_forward_pre_hook(count)
    begun = time.perf_counter(), time.process_time()
    try:
        return launch(self, steps, function)
    finally:
        SEEN[0] += time.perf_counter() - begun[0]
        SEEN[1] += time.process_time() - begun[1]
        hook.remove()


def take():
    found = {"seconds": SEEN[:], "batches": BATCHES[:]}
    SEEN[:] = [0.0, 0.0]
    BATCHES.clear()
    return found


KIND.launch_sampling = launched
script_callbacks.on_app_started(lambda _, app: app.add_api_route("/probe", take))
"""
Image = tuple[tuple[float, float], list[int], np.ndarray]
Draw = Callable[[int], Image]


def main() -> None:
    """Boot, measure, print tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("host", choices=("WEBUI", "FORGE"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--pixels", type=int, default=512, help="side of the images")
    parser.add_argument("--starts", type=int, default=0, help="pairs of starts; 0 times sampling")
    chosen = parser.parse_args()
    print(f"{chosen.host}, {platform.python_version()} here, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        if chosen.starts:
            report_starts(Path(folder), chosen)
        else:
            report_sampling(Path(folder), chosen)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


# Sampling


def report_sampling(folder: Path, chosen: argparse.Namespace) -> None:
    """Print a row for every comparison."""
    with running(prepared(chosen.host, folder)) as host:
        ways = ways_of(host, chosen.pixels)
        for name, draw in ways.items():
            _, batches, _ = draw(0)  # loads, and merges the LoRA
            print(f"{name}: {len(batches)} evaluations of batch {sorted(set(batches))}")
        print("\n| first | second | clock | s, first | second | ratio, quartiles | apart, ms |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for first, second in (("Euler", "DP-DMD"), ("DP-DMD", "anchored")):
            both = timed_pairs(ways[first], ways[second], chosen.pairs)
            for place, clock in enumerate(("wall", "processor")):
                row = row_of([(a[place], b[place]) for a, b in both])
                print(f"| {first} | {second} | {clock} | {row} |", flush=True)
        report_beside(host, chosen.pixels)


def row_of(pairs: list[tuple[float, float]]) -> str:
    """A row's cells: medians of both, quartiles of their ratio, median difference."""
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    a, b = (statistics.median(values) for values in zip(*pairs, strict=True))
    apart = 1000 * statistics.median(b - a for a, b in pairs)
    return f"{a:.3f} | {b:.3f} | {middle:.3f} ({low:.3f} .. {high:.3f}) | {apart:+.0f}"


def ways_of(host: WebUI, pixels: int) -> dict[str, Draw]:
    """Ways to sample by name; each takes a seed.

    "anchored" has one plain step of the base model, so as many evaluations as without: what
    differs is the switch of the LoRA.
    """
    plain = {"cfg_scale": 1, "steps": STEPS}

    def way(script: list[Any], **wishes: Any) -> Draw:
        return lambda seed: drawn(host, pixels, seed, script, **(plain | wishes))

    automatic = [True, FROM_FILE, ""]
    return {
        "Euler": way([False], sampler_name="Euler", scheduler="Simple"),
        "DP-DMD": way([*automatic, "off", 0, 0.0]),
        "anchored": way([*automatic, "one plain step", 0, 1.0]),
    }


def drawn(host: WebUI, pixels: int, seed: int, script: list[Any], **wishes: Any) -> Image:
    """((seconds, processor seconds) in the sampling loop, evaluations' batches, image)."""
    host.get("/probe")
    image, _ = host.draw(
        f"{PROMPT} <lora:few:1>", alwayson_scripts={SCRIPT: {"args": script}},
        seed=seed, width=pixels, height=pixels, **wishes,
    )  # fmt: skip
    found = host.get("/probe")
    return tuple(found["seconds"]), found["batches"], image


def timed_pairs(
    first: Draw, second: Draw, count: int
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Seconds of both ways, drawn in turn; the one that begins changes."""
    found = []
    for seed in range(count):
        ways = (first, second) if seed % 2 == 0 else (second, first)
        seconds = [draw(seed)[0] for draw in ways]
        found.append((seconds[0], seconds[1]) if seed % 2 == 0 else (seconds[1], seconds[0]))
    return found


def report_beside(host: WebUI, pixels: int) -> None:
    """Print what A1111's LoRA beside the layers changes in an image, and costs."""
    if host.kind != "WEBUI":
        return
    options = {"override_settings": {"lora_functional": True}}
    ways = [ways_of(host, pixels)["DP-DMD"]]
    ways.append(lambda seed: drawn(host, pixels, seed, [True], **options))
    merged, beside = (draw(0)[2] for draw in ways)
    pairs = timed_pairs(ways[0], ways[1], 5)
    apart = statistics.median(b[1] - a[1] for a, b in pairs)
    print(
        f"\nLoRA beside the layers instead of merged: at most {np.abs(merged - beside).max():.0f} "
        f"of 255 levels, {1000 * apart / STEPS:+.0f} ms of processor an evaluation, "
        "with both ways in turn."
    )


# Starts


def report_starts(folder: Path, chosen: argparse.Namespace) -> None:
    """Print wall-clock and processor seconds of starts with and without the extension."""
    host = prepared(chosen.host, folder)
    host.seconds_between_looks = 0.02
    away = folder / "away"
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for turn in range(-1, chosen.starts):  # the first pair fills caches
        for there in (True, False) if turn % 2 else (False, True):
            inside, outside = (host.extension, away) if there else (away, host.extension)
            if outside.exists():
                outside.rename(inside)
            seconds = one_start(host)
            print(f"pair {turn}, {'with' if there else 'without'}: {seconds}", flush=True)
            if turn >= 0:
                found[there].append(seconds)
    for name, place in (("wall clock", 0), ("processor", 1)):
        with_it, without = ([pair[place] for pair in found[there]] for there in (True, False))
        apart = [a - b for a, b in zip(with_it, without, strict=True)]
        print(
            f"start, s of {name}: {statistics.median(with_it):.2f} with, "
            f"{statistics.median(without):.2f} without, median difference "
            f"{statistics.median(apart):+.2f} ({min(apart):+.2f} .. {max(apart):+.2f})",
            flush=True,
        )


def one_start(host: WebUI) -> tuple[float, float]:
    """(seconds until the host says that it has started, processor seconds by then)."""
    host.log.unlink(missing_ok=True)
    begun = time.monotonic()
    with running(host):
        assert host.process is not None
        fields = Path(f"/proc/{host.process.pid}/stat").read_text().rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - begun, used


# The host


def prepared(kind: str, folder: Path) -> WebUI:
    """A host that is not running yet, with our extension, the probe, a checkpoint and a LoRA."""
    host = WebUI(kind, folder)
    models = host.base / "models"
    if kind == "WEBUI":
        webui_files.UNET["block_out_channels"] = WIDTHS
        before = webui_files.SETTINGS
        webui_files.SETTINGS = before.replace("model_channels: 32", f"model_channels: {WIDTHS[0]}")
        multiples = str([width // WIDTHS[0] for width in WIDTHS])
        webui_files.SETTINGS = webui_files.SETTINGS.replace(
            "channel_mult: [1, 2, 2, 2]", f"channel_mult: {multiples}"
        )
        webui_files.small_sd1(models / "Stable-diffusion")
    else:
        webui_files.wide_sd1(models / "Stable-diffusion")
    unet = webui_files.UNET if kind == "WEBUI" else webui_files.WIDE_UNET
    webui_files.random_lora(models / "Lora" / "few.safetensors", unet)
    probe = host.base / "extensions" / "probe" / "scripts" / "probe.py"
    probe.parent.mkdir(parents=True)
    probe.write_text(PROBE)
    (host.base / "config.json").write_text(json.dumps({"live_previews_enable": False}))
    return host


@contextlib.contextmanager
def running(host: WebUI) -> Iterator[WebUI]:
    """The host, started for the block."""
    try:
        host.start(*FAST_ATTENTION[host.kind])
        yield host
    finally:
        host.stop()


if __name__ == "__main__":
    main()

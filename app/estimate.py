"""What a distillation will take, before it starts: memory by arithmetic, time from earlier runs.

Memory is what `benchmarks/update_memory.py` counts for the published models (weights, adapters with
Adam's moments, activations), scaled to the settings; it was not measured on a card. What an earlier
run with the same settings took is taken in its place. Time is known from such a run alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from ..core.errors import DPDMDError
from ..core.families import Detection, identify
from ..core.files.tensor_file import read_header
from .config.distill_config import DistillConfig
from .library.home import home
from .runs.directory import RunDirectory
from .runs.facts import RunFacts, number, read_facts

GIB = 2**30
# An adapter's two moments, in copies of the adapter (float32); in 8 bit with a scale per 256.
MOMENT_COPIES = {"adamw": 2.0, "adamw8bit": 0.5 + 2 / 256}
# Besides activations: the gradient (float32) and a copy of the adapter in the network's format.
GRADIENT_COPIES = 1.5
MAX_RUNS, MIN_UPDATES, LAST_UPDATES = 50, 5, 200
# Files of one network differ by number format and by what else they hold; small ones are others.
SAME_MODEL = 3.0
# Bytes a stored weight takes, the share of weights that are in stored layers, and at most what the
# two buffers for offloaded layers take of them.
STORED_BYTES = {"int8": 1.01, "fp8": 1.01, "nf4": 4.5 / 8}
STORED_SHARE, OFFLOADED_SHARE = 0.98, 0.07
# All that an update's time depends on, besides the model and the machine.
SPEED_SETTINGS = (
    "num_steps", "teacher_steps", "anchor_step", "anchor_target", "num_anchored_steps",
    "objective", "gradient_steps", "batch_size", "fake_updates", "share_rollouts", "lora_layers",
    "device", "dtype", "base_weights", "offload_base", "attention", "gradient_checkpointing",
    "micro_batch_size", "offload_optimizer", "optimizer", "shard_base",
)  # fmt: skip
MEMORY_SETTINGS = (*SPEED_SETTINGS, "student_rank", "fake_rank")


@dataclass(frozen=True)
class Cost:
    """One family's published model in 16-bit.

    Args:
        parameters: of the denoiser.
        per_rank: parameters of a LoRA of rank 1, by `lora_layers`.
        fixed: bytes besides activations, gradients and copies, without gradient checkpointing.
        per_pixel: bytes of activations for a pixel of a batch, by `lora_layers`.
        checkpointed: bytes of activations for a pixel with gradient checkpointing.
    """

    parameters: int
    per_rank: dict[str, int]
    fixed: float
    per_pixel: dict[str, float]
    checkpointed: float


COSTS = {
    "sd1": Cost(
        859_520_964, {"attention": 423_936, "full": 1_050_816}, 0.13 * GIB,
        {"attention": 4250.0, "full": 5010.0}, 1180.0,
    ),
    "sdxl": Cost(
        2_567_463_684, {"attention": 2_659_840, "full": 3_074_240}, 0.32 * GIB,
        {"attention": 7340.0, "full": 8080.0}, 820.0,
    ),
    "sd3": Cost(
        2_469_663_936, {"attention": 1_468_416, "full": 2_033_664}, 0.88 * GIB,
        {"attention": 9520.0, "full": 11120.0}, 820.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What a run will take; None where it is not known. `text` says what it rests on."""

    memory_bytes: int | None
    seconds: float | None
    text: str


def estimate(
    detection: Detection,
    config: DistillConfig,
    checkpoint_bytes: int,
    earlier: Iterable[RunDirectory] = (),
    *,
    half_bytes: int | None = None,
) -> Estimate:
    """Memory and time of a run with these settings.

    Args:
        detection: what the checkpoint is.
        checkpoint_bytes: size of its file or folder.
        earlier: runs on this machine, newest first.
        half_bytes: what its numbers take in 16 bit (`bytes_in_16_bit`), where the file may hold
            them in another format; without it the file's size is taken for that.
    """
    like = list(_like(detection, config, checkpoint_bytes, earlier))
    measured = next((m for run in like if (m := _peak_memory(run, config))), None)
    memory = measured or arithmetic_memory(detection, config, half_bytes or checkpoint_bytes)
    seconds = next((s for run in like if (s := _seconds_per_update(run))), None)
    texts = (_memory_text(memory, measured is not None), _time_text(seconds, config.steps))
    return Estimate(memory, seconds and seconds * config.steps, " ".join(texts))


def bytes_in_16_bit(path: Path) -> int:
    """Bytes of a checkpoint's numbers in 16 bit, however its file or folder stores them.

    Raises:
        CheckpointError: a header cannot be read.
    """
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return 2 * sum(info.count for file in files for info in read_header(file).tensors.values())


def time_of_earlier_runs(
    path: Path, detection: Detection, config: DistillConfig
) -> tuple[float | None, str]:
    """(seconds of all updates, the same in words), from this machine's runs with these settings."""
    folder = home() / "runs"
    folders = sorted((p for p in folder.glob("*") if p.is_dir()), reverse=True)
    runs = (RunDirectory(found) for found in folders)
    like = _like(detection, config, _size(path), runs)
    seconds = next((s for run in like if (s := _seconds_per_update(run))), None)
    return seconds and seconds * config.steps, _time_text(seconds, config.steps)


def arithmetic_memory(detection: Detection, config: DistillConfig, half_bytes: int) -> int:
    """Bytes of weights, adapters, optimizer and activations; a model that is smaller takes less."""
    cost = COSTS[detection.family]
    number_bytes = 4 if config.dtype == "float32" or config.device == "cpu" else 2
    scale = min(1.0, half_bytes / (2 * cost.parameters))
    ranks = config.student_rank, config.fake_rank
    adapter = 4 * cost.per_rank[config.lora_layers]
    moments = 0.0 if config.offload_optimizer else MOMENT_COPIES[config.optimizer]
    width, height = max(
        config.resolutions or [(detection.resolution, detection.resolution)],
        key=lambda sides: sides[0] * sides[1],
    )
    per_pixel = (
        cost.checkpointed if config.gradient_checkpointing else cost.per_pixel[config.lora_layers]
    )
    parts = (
        _base_bytes(cost.parameters, number_bytes, config),
        adapter * ((1 + moments) * sum(ranks) + GRADIENT_COPIES * max(ranks)),
        0.0 if config.gradient_checkpointing else cost.fixed,
        per_pixel * number_bytes / 2 * width * height * _pictures(config) * matched_graphs(config),
    )
    return round(scale * sum(parts))


def _base_bytes(parameters: int, number_bytes: int, config: DistillConfig) -> float:
    """Bytes of the frozen network on the device, as it is stored."""
    stored = STORED_BYTES.get(config.base_weights, number_bytes)
    share = OFFLOADED_SHARE if config.offload_base else 1.0
    return parameters * ((1 - STORED_SHARE) * number_bytes + STORED_SHARE * stored * share)


def _pictures(config: DistillConfig) -> int:
    """How many pictures go through the network at once, guidance aside."""
    return min(config.micro_batch_size or config.batch_size, config.batch_size)


def matched_graphs(config: DistillConfig) -> int:
    """How many of the student's steps keep their activations at once, while matched."""
    if config.gradient_steps != "all":
        return 1
    detached = config.num_anchored_steps if config.objective in ("dp_dmd", "detach_only") else 0
    return max(1, config.num_steps - detached)


def _like(
    detection: Detection, config: DistillConfig, size: int, earlier: Iterable[RunDirectory]
) -> Iterator[RunFacts]:
    """Earlier runs of the same kind of model with the settings that decide the speed."""
    for run in islice(earlier, MAX_RUNS):
        try:
            path = Path(run.settings()["model"]["checkpoint"])
            other, other_size = identify(path), _size(path)
        except (DPDMDError, OSError, ValueError, KeyError, TypeError):
            continue  # damaged, or its checkpoint is gone
        same_model = _kind(other) == _kind(detection) and (
            size < SAME_MODEL * other_size and other_size < SAME_MODEL * size
        )
        if same_model:
            facts = read_facts(run)
            if facts.values("processes"):  # several: says nothing of one
                continue
            if _same(facts.config, config, SPEED_SETTINGS) and (
                _sizes(facts.config, other) == _sizes(config, detection)
            ):
                yield facts


def _kind(detection: Detection) -> tuple[str, str, int]:
    return detection.family, detection.title, detection.resolution


def _same(one: DistillConfig, other: DistillConfig, names: Iterable[str]) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _sizes(config: DistillConfig, detection: Detection) -> set[tuple[int, int]]:
    return set(config.resolutions) or {(detection.resolution, detection.resolution)}


def _size(path: Path) -> int:
    files = path.rglob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _peak_memory(run: RunFacts, config: DistillConfig) -> int | None:
    """Peak bytes on a card, which only a run of the same ranks tells."""
    if not _same(run.config, config, MEMORY_SETTINGS):
        return None
    peaks = [
        number(line, "memory_bytes") for line in run.metrics if number(line, "device_memory_bytes")
    ]
    return max((round(peak) for peak in peaks if peak), default=None)


def _seconds_per_update(run: RunFacts) -> float | None:
    seconds = run.values("seconds")[-LAST_UPDATES:]
    return median(seconds) if len(seconds) >= MIN_UPDATES else None


def _memory_text(memory: int, measured: bool) -> str:
    amount = "less than 1 GB" if memory < GIB else f"about {memory / GIB:.1f} GB"
    if measured:
        return f"Memory: {amount}, measured in an earlier run with these settings."
    return (
        f"Memory: {amount} by arithmetic (weights, two adapters with Adam, activations), not "
        "measured on this card; the driver and other programs need some more."
    )


def _time_text(seconds: float | None, steps: int) -> str:
    if seconds is None:
        return "Time: not known until the first updates; no earlier run had these settings."
    return (
        f"Time: about {duration(seconds * steps)} for {steps} updates, from an earlier run with "
        "these settings; loading, previews and measurements come on top."
    )


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

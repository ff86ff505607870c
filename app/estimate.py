"""What a distillation will take, before it starts: memory by arithmetic, time from earlier runs.

Memory is reckoned from a few constants of each family's published model, scaled to the settings.
They are fitted to what `tools/count_memory.py` counts, and a test holds the arithmetic to that:
never below the count, and not far above it. It was not measured on a card. What an earlier run with
the same settings took is taken in its place. Time is known from such a run alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from statistics import median

from ..core.errors import DPDMDError
from ..core.families import Detection, family, identify, weight_files
from ..core.families.base import CostFacts
from .config.distill_config import DistillConfig
from .config.knobs import AUTO
from .library.home import home
from .runs.checks import checked_runs
from .runs.directory import RunDirectory
from .runs.facts import RunFacts, number, read_facts
from .runs.tables import duration

GIB = 2**30
# A driver's own memory, and what an allocator rounds up and cannot use: assumed, not measured.
DRIVER_BYTES, ALLOCATOR_SHARE = 0.6 * GIB, 0.08
# An adapter's two moments, in copies of the adapter (float32); in 8 bit with a scale per 256.
MOMENT_COPIES = {"adamw": 2.0, "adamw8bit": 0.5 + 2 / 256}
# Where gradients grow while a checkpointed pass frees activations: the share of the smaller of both
# that is never alive with the rest, by count at the least (SD3).
NEVER_TOGETHER = 0.2
MAX_RUNS, MIN_UPDATES, LAST_UPDATES = 50, 5, 200
RUNS_AT_ONCE = 20
"""Earlier runs that a page looks at while it is filled in."""
# Files of one network differ by number format and by what else they hold; small ones are others.
SAME_MODEL = 3.0
# Bytes of a packed weight and its share of a scale.
STORED_BYTES = {"int8": 1.003, "nf4": 4.5 / 8}
# A usual decoder in float32 with one tile of a picture, as `tools/count_stages.py` counts.
DECODING_BYTES = 0.94 * GIB
# All that an update's time depends on, besides the model and the machine.
SPEED_SETTINGS = (
    "num_steps", "teacher_steps", "anchor_step", "anchor_target", "num_anchored_steps",
    "objective", "gradient_steps", "batch_size", "fake_updates", "share_rollouts", "lora_layers",
    "device", "dtype", "base_weights", "offload_base", "attention", "gradient_checkpointing",
    "micro_batch_size", "offload_optimizer", "optimizer",
)  # fmt: skip
MEMORY_SETTINGS = (*SPEED_SETTINGS, "student_rank", "fake_rank")


@dataclass(frozen=True)
class Memory:
    """Bytes alive at the worst moment of an update.

    Attributes:
        base: the frozen network as it is stored, or the two buffers for its offloaded layers.
        adapters: both LoRAs, float32.
        moments: Adam's, of both; offloaded ones only during a step.
        gradients: of the adapter that is trained at that moment.
        activations: all else: activations and intermediate results.
    """

    base: int
    adapters: int
    moments: int
    gradients: int
    activations: int

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return self.base + self.adapters + self.moments + self.gradients + self.activations


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
    config = _settled(detection, config)
    like = list(_like(detection, config, checkpoint_bytes, earlier))
    measured = next((m for run in like if (m := _peak_memory(run, config))), None)
    half = half_bytes or checkpoint_bytes
    memory = measured or memory_of_all_stages(detection, config, half)
    seconds = next((s for run in like if (s := _seconds_per_update(run))), None)
    texts = (_memory_text(memory, measured is not None), _time_text(seconds, config.steps))
    return Estimate(memory, seconds and seconds * config.steps, " ".join(texts))


def estimate_file(path: Path, detection: Detection, config: DistillConfig) -> Estimate:
    """The same of a checkpoint on this computer, from headers and its newest runs: a page's.

    Raises:
        CheckpointError: a header cannot be read.
    """
    half = bytes_in_16_bit(path)
    return estimate(detection, config, file_bytes(path), earlier_runs(), half_bytes=half)


def earlier_runs() -> list[RunDirectory]:
    """What `check` has timed on this computer, and its newest runs."""
    measured = sorted((home() / "runs").glob("*/metrics.jsonl"), reverse=True)
    runs = [RunDirectory(path.parent) for path in measured[:RUNS_AT_ONCE]]
    return checked_runs()[:RUNS_AT_ONCE] + runs


def bytes_in_16_bit(path: Path) -> int:
    """Bytes of a checkpoint's numbers in 16 bit, however its file or folder stores them.

    Raises:
        CheckpointError: a header cannot be read.
    """
    return 2 * sum(info.count for file in weight_files(path) for info in file.tensors.values())


def time_of_earlier_runs(
    path: Path, detection: Detection, config: DistillConfig
) -> tuple[float | None, str]:
    """(seconds of all updates, the same in words), from this machine's runs with these settings.

    The updates that `check` has timed go before those of runs.
    """
    folder = home() / "runs"
    folders = sorted((p for p in folder.glob("*") if p.is_dir()), reverse=True)
    runs = chain(checked_runs(), (RunDirectory(found) for found in folders))
    config = _settled(detection, config)
    like = _like(detection, config, file_bytes(path), runs)
    seconds = next((s for run in like if (s := _seconds_per_update(run))), None)
    return seconds and seconds * config.steps, _time_text(seconds, config.steps)


def arithmetic_memory(detection: Detection, config: DistillConfig, half_bytes: int) -> Memory:
    """Bytes alive at the worst moment of an update: in a pass, or in an optimizer's step.

    Args:
        half_bytes: what the checkpoint's numbers take in 16 bit; a model that is smaller than the
            published one takes less in proportion.
    """
    cost = family(detection.family).cost_of(detection.title)
    on_cpu = config.dtype == AUTO and config.device == "cpu"
    number_bytes = 4 if config.dtype == "float32" or on_cpu else 2
    one = 4.0 * cost.per_rank[config.lora_layers]
    ranks = config.student_rank, config.fake_rank
    moments = one * MOMENT_COPIES[config.optimizer]
    kept, in_step = moments * sum(ranks), 0.0
    if config.offload_optimizer:  # those of one role, during its step
        kept, in_step = 0.0, moments * max(ranks)
    in_pass = _activations(cost, config, detection.resolution, number_bytes)
    gradients = one * max(ranks)
    if config.gradient_checkpointing and _gradients_grow(config):
        in_pass -= NEVER_TOGETHER * min(in_pass, gradients)
    parts = (
        _base_bytes(cost, number_bytes, config),
        one * sum(ranks),
        kept + (in_step if in_step > in_pass else 0.0),
        gradients,
        in_pass if in_pass >= in_step else 0.0,
    )
    scale = _scale(cost, half_bytes)
    return Memory(*(round(scale * part) for part in parts))


def memory_of_all_stages(detection: Detection, config: DistillConfig, half_bytes: int) -> int:
    """Bytes of the stage that needs most: an update, or decoding beside what stays for it.

    Encoding, loading and drawing need less in every preset; each works in smaller parts where a
    device has too little room.

    Args:
        half_bytes: as in `arithmetic_memory`.
    """
    update = arithmetic_memory(detection, config, half_bytes)
    stays = update.base + update.adapters + (0 if config.offload_optimizer else update.moments)
    scale = _scale(family(detection.family).cost_of(detection.title), half_bytes)
    return max(update.peak, stays + round(scale * DECODING_BYTES))


def _scale(cost: CostFacts, half_bytes: int) -> float:
    """How large a model is, as a share of the published one."""
    return min(1.0, half_bytes / (2 * cost.parameters))


def _gradients_grow(config: DistillConfig) -> bool:
    """Whether the pass that needs most begins without gradients, as it does after no other loss."""
    return config.objective == "dmd" or config.fake_rank > config.student_rank


def _base_bytes(cost: CostFacts, number_bytes: int, config: DistillConfig) -> float:
    """Bytes of the frozen network on the device, as it is stored."""
    stored = STORED_BYTES.get(config.base_weights, number_bytes)
    if config.offload_base:  # the largest layers that are not packed need a byte a number, too
        return cost.staying * number_bytes + cost.buffers * max(stored, number_bytes / 2)
    return cost.parameters * ((1 - cost.packed) * number_bytes + cost.packed * stored)


def _activations(cost: CostFacts, config: DistillConfig, own: int, number_bytes: int) -> float:
    """Bytes of activations and intermediate results in the pass that needs most.

    Without checkpointing copies of one adapter in the network's format are among them.
    """
    width, height = max(config.resolutions or [(own, own)], key=lambda size: size[0] * size[1])
    pixels = width * height
    graphs, layers = supervised_graphs(config), config.lora_layers
    images = min(config.micro_batch_size or config.batch_size, config.batch_size)
    if config.gradient_checkpointing:
        block = cost.recomputed
        of_one = block.per_image + pixels * (block.per_pixel + block.kept * graphs)
        return images * of_one * number_bytes / 2
    of_one = graphs * (cost.per_image[layers] + cost.per_pixel[layers] * pixels)
    of_one += (graphs - 1) * cost.chained * pixels
    rank = max(config.student_rank, config.fake_rank)
    copies = number_bytes * cost.per_rank[layers] * rank if number_bytes < 4 else 0.0
    return images * of_one * number_bytes / 2 + copies


def supervised_graphs(config: DistillConfig) -> int:
    """How many of the student's steps keep their activations at once in a DMD-supervised step."""
    if config.gradient_steps != "all":
        return 1
    anchors = config.objective in ("dp_dmd", "detach_only")
    detached = max(1, config.num_anchored_steps) if anchors else 0
    return max(1, config.num_steps - detached)


def _like(
    detection: Detection, config: DistillConfig, size: int, earlier: Iterable[RunDirectory]
) -> Iterator[RunFacts]:
    """Earlier runs of the same kind of model with the settings that decide the speed."""
    for run in islice(earlier, MAX_RUNS):
        try:
            path = Path(run.settings()["model"]["checkpoint"])
            other, other_size = identify(path), file_bytes(path)
        except (DPDMDError, OSError, ValueError, KeyError, TypeError):
            continue  # damaged, or its checkpoint is gone
        same_model = _kind(other) == _kind(detection) and (
            size < SAME_MODEL * other_size and other_size < SAME_MODEL * size
        )
        if same_model:
            facts = read_facts(run)
            facts = replace(facts, config=_settled(other, facts.config))
            if facts.values("processes"):  # several: says nothing of one
                continue
            if _same(facts.config, config, SPEED_SETTINGS) and (
                _sizes(facts.config, other) == _sizes(config, detection)
            ):
                yield facts


def _settled(detection: Detection, config: DistillConfig) -> DistillConfig:
    """The settings as a run of that checkpoint would have them, as far as its speed goes."""
    asked = config.prediction != AUTO
    return config.anchored_for(config.prediction if asked else detection.prediction)


def _kind(detection: Detection) -> tuple[str, str, int]:
    return detection.family, detection.title, detection.resolution


def _same(one: DistillConfig, other: DistillConfig, names: Iterable[str]) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _sizes(config: DistillConfig, detection: Detection) -> set[tuple[int, int]]:
    return set(config.resolutions) or {(detection.resolution, detection.resolution)}


def file_bytes(path: Path) -> int:
    """Size of a checkpoint's file, or of the weights in a diffusers folder."""
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
        return (
            "Time: not known until the first updates; no earlier run had these settings. A "
            "check measures it, and whether all else works on this device."
        )
    return (
        f"Time: about {duration(seconds * steps)} for {steps} updates, from an earlier run with "
        "these settings; loading, previews and measurements come on top."
    )

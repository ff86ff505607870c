"""What `check` found, in plain words: a line with a verdict for each question, as a table.

Every line is green, red or not measured; a red one says what to do. The figures come from
`trainer/evaluation/checkup.py`. The thresholds are assumed unless their comment says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any, Literal, get_args

from ..config.distill_config import DistillConfig
from ..runs.tables import duration

Verdict = Literal["green", "red", "not measured"]
Figures = Mapping[str, Mapping[str, Any]]
"""Of each part, by its name; one that failed has "error" and whether that is "red"."""

GIB = 2**30
MIN_CONTRAST = 4.0
"""Deviation of an image's pixels, of 255: what lies below is one colour."""
MIN_BLOCK_CORRELATION = 0.3
"""Of neighbouring squares of 8 pixels; photographs have .9, the embedded teachers' shapes .6."""
LATENT_SIZE = (0.2, 4.0)
"""Root mean square of a picture's latents, which are scaled to 1."""
MIN_AGREEMENT = 0.8
"""Correlation of latents with what the network makes of them under a little noise; the embedded
teachers have .99 or more."""
ROUNDINGS = 4.0
"""By how many roundings of the largest number an adapter of zeros may change an output."""
LARGE_ERROR = 0.3
"""Of x0, as a share of its size. Measured on the embedded eps teacher with guidance 7 at timestep
999: .83 in bfloat16, .10 in float16."""
ABOVE, BELOW = 1.08, 0.6
"""Memory measured, as a multiple of the estimate: the first is what the estimate adds itself."""
COMPARABLE = 0.5
"""Share of the published network's size from which on the estimate is made for a network."""
MIN_HEDGING = 0.4
"""Embedded teachers have .5 and more, their students .15 and less (docs/check.md)."""
DAMAGED = "Get the file again, or choose another --dtype: what it computes is NaN or infinity."
STAGES = {
    "encoding": "prompt encoding",
    "loading": "loading",
    "student": "student update",
    "fake": "fake-score update",
    "optimizer": "optimizer step",
    "drawing": "drawing and measuring",
    "decoding": "decoding",
}
UPDATE_PARTS = ("loading", "updates", "memory")
SHORT = (
    "Close what else uses the device, take the --preset of a smaller card, or lower --resolution."
)
TOO_LITTLE = (
    "Expect more memory than `estimate` says: take the --preset of a smaller card, and please "
    "report this table."
)
TOO_MUCH = (
    "The estimate asks for too much: a larger --preset may fit, and --no-fit-memory takes settings "
    "as they are. Please report this table."
)
UPDATE_STAGES = ("loading", "student", "fake", "optimizer")
"""Those that the estimate is made for. The others take less by themselves where memory is short."""


@dataclass(frozen=True)
class Line:
    """The answer to one question.

    Attributes:
        found: what was measured, in words.
        advice: what to do; only of a red one.
    """

    name: str
    found: str
    verdict: Verdict
    advice: str = ""


def checkup_lines(figures: Figures, config: DistillConfig) -> list[Line]:
    """The answers to all questions.

    Args:
        config: the settings that were checked.
    """
    picture = _of("Teacher's picture", figures, "picture", _picture)
    if figures.get("loading", {}).get("red"):
        picture = _failed(picture.name, figures["loading"])
    few = _of("Already a few-step model?", figures, "few_steps", _few_steps)
    if picture.verdict == "red":
        few = Line(few.name, "the picture is no picture", "not measured")
    return [
        picture,
        _of("An untrained LoRA changes nothing", figures, "adapters", _adapters),
        _formats(figures),
        _memory(figures),
        _of("Time", figures, "updates", lambda found: _time(found, config)),
        few,
    ]


def checkup_table(title: Mapping[str, str], lines: Sequence[Line], figures: Figures) -> str:
    """The table as Markdown, ready to be pasted; no path in it but what `title` says.

    Args:
        title: facts of the checkpoint and the machine, by name.
    """
    head = [f"{name}: {text}  " for name, text in title.items()]
    rows = ["| question | found | verdict |", "|---|---|---|"]
    rows += [f"| {line.name} | {_cell(line.found)} | **{line.verdict}** |" for line in lines]
    advice = [f"- {line.name}: {line.advice}" for line in lines if line.advice]
    stages = _stage_rows(figures)
    return "\n".join([*head, "", *rows, *([""] if advice else []), *advice, "", *stages]) + "\n"


def read_lines(result: Mapping[str, Any]) -> list[Line]:
    """The lines in what `check` printed as JSON; what is damaged is left out."""
    found, names = result.get("lines"), [field.name for field in fields(Line)]
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    sound = [row for row in rows if all(isinstance(row.get(name), str) for name in names)]
    kept = [row for row in sound if row["verdict"] in get_args(Verdict)]
    return [Line(**{name: row[name] for name in names}) for row in kept]


def stage_bytes(figures: Figures) -> dict[str, int]:
    """Peak bytes of each stage that was measured."""
    places = {
        "encoding": ("encoding", "peak"),
        "loading": ("loading", "peak"),
        "student": ("memory", "student"),
        "fake": ("memory", "fake"),
        "optimizer": ("memory", "optimizer"),
        "drawing": ("picture", "drawing"),
        "decoding": ("picture", "decoding"),
    }
    found = {stage: figures.get(part, {}).get(name) for stage, (part, name) in places.items()}
    return {stage: size for stage, size in found.items() if size}


def _of(name: str, figures: Figures, part: str, judge: Callable[[Mapping[str, Any]], Line]) -> Line:
    """One part's line; a part that failed says why."""
    found = figures.get(part)
    if found is None:
        return Line(name, "not reached", "not measured")
    if "error" in found:
        return _failed(name, found)
    judged = judge(found)
    return Line(name, judged.found, judged.verdict, judged.advice)


def _failed(name: str, found: Mapping[str, Any]) -> Line:
    if found.get("red"):
        return Line(name, str(found["error"]), "red", DAMAGED)
    return Line(name, str(found["error"]), "not measured")


def _line(found: str, advice: str = "") -> Line:
    """A line that is green unless there is something to do."""
    return Line("", found, "red" if advice else "green", advice)


def _picture(found: Mapping[str, Any]) -> Line:
    drawn = f"{found['steps']} steps with guidance {found['guidance']:g}"
    if not found["finite"]:
        return _line(
            f"{drawn}: NaN or infinity",
            "Choose --dtype float32 or bfloat16; if that does not help, the file is damaged.",
        )
    if found["decoder"]:
        return _line(
            f"{drawn}: {found['decoder']}", "Name another VAE with --vae; this one is damaged."
        )
    low, high = LATENT_SIZE
    seen = (
        f"contrast {found['contrast']:.0f} of 255, latents of size {found['size']:.2f}, "
        f"{found['agreement']:.0%} of it found again under a little noise"
    )
    if found.get("rough"):
        seen += "; through a rough map, as no VAE was given"
    if found["contrast"] < MIN_CONTRAST and low <= found["size"] <= high:
        return _line(
            f"{drawn}: one colour ({seen})",
            "Name the model's VAE with --vae: the rough map may be what shows so little."
            if found.get("rough")
            else "The VAE does not belong to this model or is damaged: name another with --vae.",
        )
    noisy = found["smoothness"] < MIN_BLOCK_CORRELATION or found["agreement"] < MIN_AGREEMENT
    if noisy or not low <= found["size"] <= high:
        # of a family whose models all predict the same, the shift alone may be told otherwise
        options = "--shift" if found.get("only") else "--prediction, --zero-terminal-snr, --shift"
        return _line(
            f"{drawn}: noise ({seen})",
            f"Look at teacher.png. Is it really that kind of model ({options})? Else the file is "
            "damaged.",
        )
    return _line(f"{drawn}: a picture ({seen}); compare teacher.png with your host's")


def _adapters(found: Mapping[str, Any]) -> Line:
    if found["largest"] == 0:
        return _line("the outputs are bit-equal")
    seen = f"outputs differ by {found['largest']:.2g} at most; they reach {found['size']:.2g}"
    allowed = ROUNDINGS * found["rounding"] * found["size"]
    if found["largest"] <= allowed:  # False for NaN
        return _line(f"{seen}, which is rounding")
    return _line(
        seen,
        "The LoRA layers do not work with this model on this device: a run would learn from a "
        "wrong start. Try --lora-layers attention or --device cpu, and report this table.",
    )


def _formats(figures: Figures) -> Line:
    """The number formats' line; the one in force decides."""
    name, loaded = "Number format", figures.get("loading")
    if loaded is None:
        return Line(name, "not reached", "not measured")
    if "error" in loaded:
        return Line(name, "the model could not be loaded", "not measured")
    in_force = str(loaded["dtype"])
    errors, texts = {}, []
    for kind in ("bfloat16", "float16"):
        found = figures.get(kind, {})
        if "errors" in found:
            errors[kind] = found["errors"]
            shares = ", ".join(f"{e:.3g} at {t}" for t, e in found["errors"].items())
            texts.append(f"{kind} {shares}" if found["finite"] else f"{kind} NaN or infinity")
        else:
            texts.append(f"{kind} not measured ({found.get('error', 'not reached')})")
    seen = f"runs in {in_force}; error of x0 against float32, as a share of its size: "
    seen += "; ".join(texts)
    if in_force == "float32":
        return Line(name, seen, "green")
    if in_force not in errors:
        return Line(name, seen, "not measured")
    if figures[in_force]["finite"] and max(errors[in_force].values()) <= LARGE_ERROR:
        return Line(name, seen, "green")
    return Line(name, seen, "red", _other_format(in_force, errors, figures))


def _other_format(
    in_force: str, errors: Mapping[str, Mapping[str, float]], figures: Figures
) -> str:
    own = max(errors[in_force].values()) if figures[in_force]["finite"] else float("inf")
    for other, found in errors.items():
        if other != in_force and figures[other]["finite"] and max(found.values()) < own / 2:
            return f"Choose --dtype {other}, whose error is smaller."
    return "Choose --dtype float32 if the memory is enough for it, or a lower --teacher-guidance."


def _memory(figures: Figures) -> Line:
    name, sizes = "Memory", stage_bytes(figures)
    short = next((p for p in UPDATE_PARTS if figures.get(p, {}).get("out_of_memory")), None)
    if short is not None:
        return Line(name, str(figures[short]["error"]), "red", SHORT)
    counted = figures.get("memory")
    if counted is None or "error" in counted:
        return _of(name, figures, "memory", lambda found: _line(""))
    stage = max((s for s in UPDATE_STAGES if s in sizes), key=lambda s: sizes[s])
    worst, expected = sizes[stage], counted["estimate"]
    seen = (
        f"{_gib(worst)} at most ({STAGES[stage]}); the estimate says {_gib(expected)}, "
        f"measured is {worst / expected:.0%} of it"
    )
    if counted["fallbacks"]:
        seen += f"; to save memory: {', '.join(counted['fallbacks'])}"
    if counted["share"] < COMPARABLE:
        small = (
            f"it is made for the published size, and this model has {counted['share']:.1%} of it"
        )
        return Line(name, f"{seen}; {small}", "not measured")
    if worst > ABOVE * expected:
        return Line(name, seen, "red", TOO_LITTLE)
    if worst < BELOW * expected:
        return Line(name, seen, "red", TOO_MUCH)
    return Line(name, seen, "green")


def _time(found: Mapping[str, Any], config: DistillConfig) -> Line:
    each = median(found["seconds"])
    updates = f"{each:.2f} s an update (median of {len(found['seconds'])})"
    return _line(f"{updates}, {duration(each * config.steps)} for {config.steps} updates")


def _few_steps(found: Mapping[str, Any]) -> Line:
    hedging, uncertain = found["hedging"], found["uncertain"]
    seen = (
        f"under much noise it hedges by {hedging:.2f} (standard error {uncertain:.2f}); an "
        "ordinary model by about 1, one that draws in few steps by about 0 or less"
    )
    if hedging >= MIN_HEDGING:
        return _line(f"no sign of it: {seen}. Compare few-steps.png with teacher.png")
    if hedging + uncertain >= MIN_HEDGING:
        return Line("", f"these images do not tell: {seen}", "not measured")
    return _line(
        f"perhaps: {seen}",
        "Compare few-steps.png with teacher.png. If the few plain steps are the better images, "
        "this is a few-step model already (Lightning, Turbo, LCM, Hyper, DMD2), perhaps merged in: "
        "use it as it is, or distil the checkpoint that it was made from. A hint, no proof.",
    )


def _stage_rows(figures: Figures) -> list[str]:
    sizes = stage_bytes(figures)
    if not sizes:
        return []
    rows = ["| peak memory | GiB |", "|---|---|"]
    rows += [f"| {words} | {sizes[s] / GIB:.2f} |" for s, words in STAGES.items() if s in sizes]
    expected = figures.get("memory", {}).get("estimate")
    return rows + ([f"| estimate of an update | {expected / GIB:.2f} |"] if expected else [])


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())

"""What a front end asks of the worker: one distillation, as it is written into settings.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...core.errors import RunError, SettingsError
from ...core.families import ENCODER_FILES, AskedSampling, encoder_title
from ..library.path_checks import typed_path
from .distill_config import DistillConfig
from .knobs import AUTO

MAX_SEEDS = 100_000
_ENCODERS = {name: encoder_title(kind) for kind, name in ENCODER_FILES.items()}
OTHER_FILES = {**_ENCODERS, "vae": "VAE (for images)"}
"""What may stand beside the checkpoint: its name in `ModelFiles`, and what it is."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The checkpoint and the files that stand in for, or add to, what it holds."""

    checkpoint: str
    clip_l: str | None = None
    clip_g: str | None = None
    t5: str | None = None
    qwen: str | None = None
    vae: str | None = None

    def text_encoders(self) -> dict[str, Path]:
        """The text-encoder files that were named, by kind of encoder."""
        named = {kind: getattr(self, name) for kind, name in ENCODER_FILES.items()}
        return {kind: Path(file) for kind, file in named.items() if file}


def asked_sampling(prediction: str, zero_terminal_snr: str, shift: float) -> AskedSampling:
    """What settings ask for that may be "auto", or 0 for the shift."""
    return AskedSampling(
        prediction=None if prediction == AUTO else prediction,
        zero_terminal_snr={AUTO: None, "yes": True, "no": False}[zero_terminal_snr],
        shift=shift or None,
    )


@dataclass(frozen=True, kw_only=True)
class TeacherLora:
    """A LoRA that is merged into the teacher; `sha256` is its file's when the run began."""

    path: str
    strength: float = 1.0
    sha256: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not isinstance(self.strength, int | float):
            raise TypeError("a teacher LoRA has a path and a strength")


@dataclass(frozen=True, kw_only=True)
class DistillRequest:
    """One distillation: which model, which settings, where the LoRA goes.

    Args:
        teacher_loras: the user's LoRAs that are part of the teacher.
        include_teacher_loras: whether the written LoRA holds them, too.
    """

    model: ModelFiles
    config: DistillConfig
    output: str
    teacher_loras: tuple[TeacherLora, ...] = ()
    include_teacher_loras: bool = False
    overwrite: bool = False
    file_format: Literal["kohya", "peft"] = "kohya"
    created_at: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON-ready names and values."""
        return dataclasses.asdict(self) | {"config": self.config.to_file()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillRequest:
        """A request read back from settings.json, or RunError if it is not one."""
        try:
            own = {k: v for k, v in values.items() if k != "version"}
            model = ModelFiles(**own.pop("model"))
            config = DistillConfig.from_dict(own.pop("config"))
            loras = tuple(TeacherLora(**item) for item in own.pop("teacher_loras", ()))
            found = cls(model=model, config=config, teacher_loras=loras, **own)
            _check_types(found)
            return found
        except SettingsError:
            raise
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"settings.json does not describe a run ({error}). It was edited or damaged; start "
                "a new run."
            ) from error

    def files(self) -> list[str]:
        """Paths of all files that the run reads."""
        named = [value for value in dataclasses.asdict(self.model).values() if value]
        return named + [lora.path for lora in self.teacher_loras]

    def absolute(self) -> DistillRequest:
        """The same with absolute paths, so that a resume works from any folder."""
        files = {
            name: value and _absolute(value)
            for name, value in dataclasses.asdict(self.model).items()
        }
        loras = [
            dataclasses.replace(lora, path=_absolute(lora.path)) for lora in self.teacher_loras
        ]
        return dataclasses.replace(
            self,
            model=ModelFiles(**files),
            teacher_loras=tuple(loras),
            output=_absolute(self.output),
        )


def _absolute(path: str) -> str:
    return str(Path(typed_path(path)).resolve())


def _check_types(request: DistillRequest) -> None:
    """Raise TypeError for a field of another kind than this program writes."""
    others = [file for file in dataclasses.asdict(request.model).values() if file]
    loras = [lora.path for lora in request.teacher_loras]
    for path in (request.output, request.model.checkpoint, *others, *loras):
        if not isinstance(path, str) or not path or "\0" in path:
            raise TypeError(f"{path!r} is not a path")
    if request.file_format not in ("kohya", "peft"):
        raise TypeError(f"file_format is {request.file_format!r}")
    kinds = {"overwrite": bool, "include_teacher_loras": bool, "created_at": int | float,
             "extra": dict}  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(getattr(request, name), kind):
            raise TypeError(f"{name} is {getattr(request, name)!r}")


def parse_seeds(text: str) -> list[int]:
    """Seeds of "3", "0-8" or "0,5,7-9", in order and each once."""
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        first, last = low, high if dash else low
        if first.isdecimal() and last.isdecimal() and max(len(first), len(last)) > 100:
            raise SettingsError(f"seeds {text[:40]!r}... are too large; up to {2**63 - 1}.")
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise SettingsError(
                f"seeds {text!r} are not understood; write one (3), a range (0-8), or several "
                "separated by commas (0,5,7-9)."
            )
        if int(last) - int(first) > 10_000 or int(last) >= 2**63:
            raise SettingsError(f"seeds {text!r} are too many or too large.")
        seeds += range(int(first), int(last) + 1)
        if len(seeds) > MAX_SEEDS:
            raise SettingsError(f"seeds are more than {MAX_SEEDS:,}; name fewer.")
    return list(dict.fromkeys(seeds))

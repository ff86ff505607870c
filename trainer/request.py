"""What a front end asks of the worker: one distillation, as it is written into settings.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.errors import RunError, SettingsError
from .config import DistillConfig

FILE_FORMATS = ("kohya", "peft")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The checkpoint and the files that stand in for, or add to, what it holds."""

    checkpoint: str
    clip_l: str | None = None
    clip_g: str | None = None
    t5: str | None = None
    vae: str | None = None


@dataclass(frozen=True, kw_only=True)
class DistillRequest:
    """One distillation: which model, which settings, where the LoRA goes."""

    model: ModelFiles
    config: DistillConfig
    output: str
    overwrite: bool = False
    file_format: Literal["kohya", "peft"] = "kohya"
    created_at: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON-ready names and values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillRequest:
        """A request read back from settings.json, or RunError if it is not one."""
        try:
            own = {k: v for k, v in values.items() if k != "version"}
            model = ModelFiles(**own.pop("model"))
            config = DistillConfig.from_dict(own.pop("config"))
            return cls(model=model, config=config, **own)
        except SettingsError:
            raise
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"settings.json does not describe a run ({error}). It was edited or damaged; start "
                "a new run."
            ) from error

    def absolute(self) -> DistillRequest:
        """The same with absolute paths, so that a resume works from any folder."""
        files = {
            name: value and str(Path(value).expanduser().resolve())
            for name, value in dataclasses.asdict(self.model).items()
        }
        output = str(Path(self.output).expanduser().resolve())
        return dataclasses.replace(self, model=ModelFiles(**files), output=output)

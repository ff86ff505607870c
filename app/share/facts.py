"""Everything that the texts of a package say, in one place; all of it is plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.families import BaseModel, Detection
from ...core.files.hashes import FileHashes
from ...core.recipe.recipe import Recipe
from .labels import base_model
from .measurements import Measurements
from .names import one_line

LORA_STRENGTH = 1.0


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """One preview image: its place in the package, and what it was sampled from."""

    file: str
    prompt: str
    seed: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """The checkpoint that the images were sampled with.

    Args:
        file: its file's or folder's name.
        sha256: of the file; empty for a folder.
        text_encoders, vae: names of the files that stood in for what it does not hold.
        embedded: whether it is a teacher that ships with this program.
    """

    file: str
    name: str
    detection: Detection
    sha256: str = ""
    text_encoders: tuple[str, ...] = ()
    vae: str = ""
    embedded: bool = False


@dataclass(frozen=True, kw_only=True)
class PackageFacts:
    """What is shared.

    Args:
        name: stem of the packaged file, safe everywhere.
        file_format: kohya (what hosts read) or peft (what diffusers reads).
        with_loras: (file name, strength) of the LoRAs that the images were sampled with as well.
        label: base model on Civitai.
        metadata: of the packaged file, of unknown origin.
    """

    name: str
    title: str
    author: str
    license: str
    recipe: Recipe
    checkpoint: CheckpointFacts
    file_format: str
    hashes: FileHashes
    bytes: int
    label: str
    trigger_words: tuple[str, ...] = ()
    with_loras: tuple[tuple[str, float], ...] = ()
    images: tuple[ImageFacts, ...] = ()
    measured: Measurements | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of the packaged LoRA."""
        return f"{self.name}.safetensors"

    @property
    def family(self) -> str:
        """Its name."""
        return self.recipe.family

    @property
    def base(self) -> BaseModel:
        """The base model of the family."""
        checkpoint = self.checkpoint
        return base_model(self.family, checkpoint.detection.title, embedded=checkpoint.embedded)

    @property
    def teacher(self) -> str:
        """Name of the checkpoint that was distilled, as the recipe states it."""
        return one_line(self.recipe.teacher_name, 120) or self.checkpoint.name

    @property
    def sampled_with_teacher(self) -> bool:
        """Whether the images were sampled with the very checkpoint that was distilled."""
        stated = self.recipe.teacher_sha256
        return not stated or not self.checkpoint.sha256 or stated == self.checkpoint.sha256

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that suit it best."""
        if self.recipe.resolutions:
            return self.recipe.resolutions[0]
        side = self.checkpoint.detection.resolution
        return side, side

    @property
    def tag(self) -> str:
        """How A1111 and Forge switch it on in a prompt."""
        return f"<lora:{self.name}:{LORA_STRENGTH:g}>"

"""What a package is asked to hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import SettingsError

FEWEST_IMAGES, MOST_IMAGES = 6, 200
TEXT_LIMITS = {"name": 200, "author": 200, "license": 200, "trigger_words": 4000}


@dataclass(frozen=True, kw_only=True)
class PackageRequest:
    """What to package. Empty values take what the run, the LoRA or the family says.

    Args:
        source: a LoRA of ours, or the folder of the run that made it.
        output: the folder to make; the zip gets its name.
        files: paths of model files by name: checkpoint, clip_l, clip_g, t5, vae.
        prompts: what the images show.
        count: how many images.
        cover: which of them is the cover, from 1.
        label: base model as Civitai calls it.
        report: report.json to quote diversity and speed from.
    """

    source: Path
    output: Path
    files: dict[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    count: int = 8
    seeds: tuple[int, ...] = ()
    cover: int = 1
    name: str = ""
    author: str = ""
    license: str = ""
    label: str = ""
    trigger_words: str = ""
    with_loras: tuple[tuple[str, float], ...] = ()
    report: Path | None = None
    batch_size: int = 4
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False

    def check(self) -> None:
        """Raise SettingsError for what cannot be packaged."""
        if not FEWEST_IMAGES <= self.count <= MOST_IMAGES:
            raise SettingsError(
                f"{self.count} images were asked for; a package has {FEWEST_IMAGES} to "
                f"{MOST_IMAGES}."
            )
        if not 1 <= self.cover <= self.count:
            raise SettingsError(
                f"Image {self.cover} shall be the cover, but there are images 1 to {self.count}."
            )
        for name, limit in TEXT_LIMITS.items():
            length = len(getattr(self, name))
            if length > limit:
                raise SettingsError(
                    f"{name.replace('_', ' ')} has {length} characters; at most {limit} fit."
                )


def image_pairs(num_prompts: int, seeds: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    """(prompt number from 0, seed) of each image, no two alike; neighbours differ in both.

    Raises:
        SettingsError: there are fewer combinations than images.
    """
    seeds = list(seeds) or list(range(count))
    prompts = min(num_prompts, count)
    if prompts * len(seeds) < count:
        raise SettingsError(
            f"{num_prompts} prompts and {len(seeds)} seeds make {prompts * len(seeds)} different "
            f"images; {count} are asked for. Give more prompts or seeds, or lower --count."
        )
    return tuple(
        (number % prompts, seeds[(number // prompts + number % prompts) % len(seeds)])
        for number in range(count)
    )

"""The `package` command: draws the images of a package and puts everything in its place."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from ...app.library.path_checks import typed_path
from ...app.prompts.expansion import expand
from ...app.share.facts import CheckpointFacts, ImageFacts, PackageFacts
from ...app.share.folder import (
    IMAGES,
    building,
    image_file,
    package_files,
    package_texts,
    zip_of,
)
from ...app.share.labels import chosen_label
from ...app.share.measurements import read_measurements
from ...app.share.names import one_line, safe_name, words
from ...app.share.source import PackageRequest, PackageSource, find_source, image_pairs
from ...core.errors import SettingsError
from ...core.files.atomic_write import explained, replace, write_text
from ...core.files.hashes import file_hashes, file_sha256
from ...core.lora.header import copy_with_metadata
from ..device import device_explained
from ..loading.checkpoint import model_name
from ..toys.worlds import world_of
from .markdown import markdown_to_html
from .sample import SampleRequest, draw_images

log = logging.getLogger("dpdmd_studio.commands")


@dataclass(frozen=True)
class Package:
    """What was written."""

    folder: Path
    zip: Path
    lora: Path
    cover: Path
    images: tuple[Path, ...]
    label: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return {
            "folder": str(self.folder),
            "zip": str(self.zip),
            "lora": str(self.lora),
            "cover": str(self.cover),
            "pictures": [str(path) for path in self.images],
            "base_model": self.label,
        }

    def to_text(self) -> str:
        """Where everything lies, for the terminal."""
        return (
            f"{len(self.images)} images, base model {self.label}\n"
            f"Folder: {self.folder}\nZip:    {self.zip}\n"
            f"Upload: {self.folder / 'CIVITAI.txt'} says how; README.md is for Hugging Face."
        )


def package(request: PackageRequest) -> Package:
    """Draw the images, write the texts, and move folder and zip to their place.

    Raises:
        DPDMDError: whatever is wrong with the request, its files, or the place.
    """
    request.check()
    source = find_source(request)
    title, embedded = source.detection.title, source.embedded
    label = chosen_label(request.label, source.recipe.family, title, embedded=embedded)
    measured = read_measurements(source.report) if source.report else None
    trigger_words = words(request.trigger_words)
    prompts = _prompts(request, source)
    pairs = image_pairs(len(prompts), request.seeds, request.count)
    for note in source.notes:
        log.info("%s", note)
    name = safe_name(request.name or source.lora.stem)
    output = Path(typed_path(str(request.output))).resolve()
    files = package_files(name, request.count)
    with building(output, name, files, request.overwrite) as folder:
        lora = folder / f"{name}.safetensors"
        metadata = copy_with_metadata(source.lora, lora, _metadata(request, name, trigger_words))
        images = _images(request, source, lora, prompts, pairs)
        log.info("Writing the texts")
        facts = PackageFacts(
            name=name,
            title=one_line(request.name or metadata.get("modelspec.title") or name, 200),
            author=one_line(request.author, 200),
            license=one_line(request.license, 200),
            recipe=source.recipe,
            checkpoint=_checkpoint(source),
            file_format=source.file_format,
            hashes=file_hashes(lora),
            bytes=lora.stat().st_size,
            label=label,
            trigger_words=trigger_words,
            with_loras=tuple((Path(path).name, s) for path, s in source.with_loras),
            images=tuple(images),
            measured=measured,
            metadata=metadata,
        )
        for file, text in package_texts(facts, markdown_to_html).items():
            write_text(folder / file, text)
        _cover(folder, name, request.cover)
        log.info("Packing the zip")
    return Package(
        folder=output,
        zip=zip_of(output),
        lora=output / facts.file,
        cover=output / "cover.png",
        images=tuple(output / image.file for image in images),
        label=label,
    )


def _prompts(request: PackageRequest, source: PackageSource) -> list[str]:
    """What the images show, one choice made of every alternative."""
    world = world_of(Path(source.model.checkpoint))
    if world and not source.prompts:
        return world.captions(True, request.count, 0)
    chosen = [expand(text, Random(n)) for n, text in enumerate(source.prompts)]
    return list(dict.fromkeys(chosen))


def _metadata(
    request: PackageRequest, name: str, trigger_words: Sequence[str]
) -> Mapping[str, str]:
    """What the packaged file says differently; empty values change nothing."""
    return {
        "ss_output_name": name,
        "modelspec.title": one_line(request.name, 200),
        "modelspec.author": one_line(request.author, 200),
        "modelspec.license": one_line(request.license, 200),
        "modelspec.trigger_phrase": ", ".join(trigger_words),
    }


def _images(
    request: PackageRequest,
    source: PackageSource,
    lora: Path,
    prompts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
) -> list[ImageFacts]:
    """Draw every image with the packaged file, and give it its place."""
    drawn = lora.parent / "drawn"
    asked = SampleRequest(
        model=source.model,
        prompts=tuple(prompts),
        seeds=tuple(dict.fromkeys(seed for _, seed in pairs)),
        pairs=tuple(pairs),
        output=drawn,
        lora=(str(lora), 1.0),
        with_loras=source.with_loras,
        batch_size=request.batch_size,
        device=request.device,
        dtype=request.dtype,
    )
    advice = "Lower --batch-size, or close what else uses the device. Nothing was written."
    with device_explained(SettingsError, advice):
        paths = draw_images(asked)
    found = []
    with explained(drawn):
        (lora.parent / IMAGES).mkdir()
        for number, ((prompt, seed), path) in enumerate(zip(pairs, paths, strict=True), 1):
            with Image.open(path) as image:
                width, height = image.size
            replace(path, lora.parent / image_file(number))
            found.append(
                ImageFacts(
                    file=image_file(number),
                    prompt=prompts[prompt],
                    seed=seed,
                    width=width,
                    height=height,
                )
            )
        drawn.rmdir()
    return found


def _checkpoint(source: PackageSource) -> CheckpointFacts:
    model, path = source.model, Path(source.model.checkpoint)
    encoders = model.text_encoders().values()
    return CheckpointFacts(
        file=path.name,
        name=one_line(model_name(path), 120),
        detection=source.detection,
        sha256=file_sha256(path) if path.is_file() else "",
        text_encoders=tuple(file.name for file in encoders),
        vae=Path(model.vae).name if model.vae else "",
        embedded=source.embedded,
    )


def _cover(folder: Path, name: str, number: int) -> None:
    """One of the images, with its settings, as cover and as the hosts' preview."""
    for file in ("cover.png", f"{name}.preview.png"):
        with explained(folder / file):
            shutil.copyfile(folder / image_file(number), folder / file)

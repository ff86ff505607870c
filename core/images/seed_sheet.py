"""Images of several models and seeds on one labelled sheet: a row a model, a column a seed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 6
BACKGROUND, INK, FAINT = (250, 250, 250), (30, 30, 30), (110, 110, 110)
# Images smaller than this are enlarged to about it, so that a 64-pixel one can be looked at.
COMFORTABLE_SIDE = 160
# A larger sheet is shrunk: some programs and cards take no larger image.
MAX_SIDE = 8192
MAX_LABEL = 300  # characters


@dataclass(frozen=True)
class Row:
    """One arm: its label, a fainter line of facts below, and its images, uint8 (H, W, 3)."""

    label: str
    facts: str
    images: Sequence[np.ndarray]


@dataclass(frozen=True)
class Pen:
    """How a line of text is written: its colour and its font."""

    ink: tuple[int, int, int]
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont


def seed_sheet(rows: Sequence[Row], seeds: Sequence[int]) -> Image.Image:
    """One sheet with a row for every arm and a column for every seed.

    Every row has one image for each seed; rows may differ in their images' size.
    """
    width, height = _cell_size(rows, len(seeds))
    text = max(12, round(min(width, height) / 14))
    label_pen, facts_pen = Pen(INK, _font(text)), Pen(FAINT, _font(max(10, round(text * 0.8))))
    line = round(text * 1.35)
    row_height = 2 * line + height + GAP
    size = (GAP + len(seeds) * (width + GAP), line + len(rows) * row_height)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, seed in enumerate(seeds):
        left = GAP + column * (width + GAP)
        _write(draw, (left, GAP // 2), f"seed {seed}", facts_pen, width)
    for index, row in enumerate(rows):
        top = line + index * row_height
        room = size[0] - 2 * GAP
        _write(draw, (GAP, top), row.label, label_pen, room)
        _write(draw, (GAP, top + line), row.facts, facts_pen, room)
        for column, image in enumerate(row.images):
            left = GAP + column * (width + GAP)
            sheet.paste(_fitted(image, width, height), (left, top + 2 * line))
    return sheet


def _cell_size(rows: Sequence[Row], columns: int) -> tuple[int, int]:
    shapes = [image.shape for row in rows for image in row.images]
    height, width = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    enlarged = max(1, COMFORTABLE_SIDE // max(height, width))
    # a row is about an eighth higher than its images, for its two lines of text
    room = min(MAX_SIDE / (columns * width), MAX_SIDE / (1.25 * len(rows) * height))
    scale = min(enlarged, room) if room < 1 else enlarged
    return max(1, int(width * scale)), max(1, int(height * scale))


def _fitted(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    image = Image.fromarray(pixels)
    if image.size == (width, height):
        return image
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    sharp = scale >= 2 and scale == int(scale)
    return image.resize(size, Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; before Pillow 10.1 it has one size only."""
    if "size" in inspect.signature(ImageFont.load_default).parameters:
        return ImageFont.load_default(size)
    return ImageFont.load_default()


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    pen: Pen,
    room: int,
) -> None:
    """Write one line, cut off where it would leave its room."""
    text = " ".join(text.split())[:MAX_LABEL]
    if not isinstance(pen.font, ImageFont.FreeTypeFont):
        text = text.encode("latin-1", "replace").decode("latin-1")  # all the old font has
    if draw.textlength(text, font=pen.font) > room:
        while text and draw.textlength(text + "...", font=pen.font) > room:
            text = text[:-1]
        text += "..."
    draw.text(place, text, fill=pen.ink, font=pen.font)

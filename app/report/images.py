"""Images of a report: inside its page as data URLs, small enough to carry, and on sheets."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Images up to this side are kept exactly, as PNG, and enlarged by the browser pixel by pixel.
CRISP_SIDE = 128
LARGEST_SIDE = 256
# All larger images of a page together; at JPEG's quarter of a byte that is about 3 MB of page.
PIXEL_BUDGET = 9_000_000
JPEG_QUALITY = 85
GAP = 4
LABEL_HEIGHT = 18
BACKGROUND, INK = (250, 250, 250), (40, 40, 40)
# Small images are enlarged to about this size, so that a 64-pixel teacher can be looked at.
COMFORTABLE_SIDE = 128


@dataclass(frozen=True)
class EmbeddedImage:
    """An image as its data URL, with the size in pixels that it has there."""

    source: str
    width: int
    height: int
    crisp: bool


def embedded_side(count: int) -> int:
    """Longest side at which `count` images stay within the page's budget."""
    affordable = math.isqrt(PIXEL_BUDGET // max(1, count))
    return max(CRISP_SIDE, min(LARGEST_SIDE, affordable))


def embedded(pixels: np.ndarray, side: int) -> EmbeddedImage:
    """A uint8 (H, W, 3) image for the page, its longest side at most `side`."""
    crisp = max(pixels.shape[:2]) <= CRISP_SIDE
    image = Image.fromarray(pixels) if crisp else thumbnail(pixels, side)
    encoded = {}
    for name in ("png",) if crisp else ("png", "jpeg"):
        stream = io.BytesIO()
        image.convert("RGB").save(stream, format=name, quality=JPEG_QUALITY)
        encoded[name] = stream.getvalue()
    name = min(encoded, key=lambda name: len(encoded[name]))
    source = f"data:image/{name};base64,{base64.b64encode(encoded[name]).decode('ascii')}"
    return EmbeddedImage(source, image.width, image.height, crisp)


def thumbnail(pixels: np.ndarray, side: int) -> Image.Image:
    """A uint8 (H, W, 3) image, made smaller where its longest side is above `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def first_image(sheet: Image.Image, sizes: Sequence[tuple[int, int]]) -> Image.Image | None:
    """The upper left image of a sheet of `image_grid`; None where it holds none of these sizes.

    Args:
        sizes: (width, height) that its images may have had, in pixels.
    """
    for width, height in sizes:
        scale = max(1, COMFORTABLE_SIDE // max(width, height))
        width, height = width * scale, height * scale
        across = (sheet.width - GAP) % (width + GAP)
        down = (sheet.height - GAP) % (LABEL_HEIGHT + height + GAP)
        if sheet.width > width and sheet.height > height and across == down == 0:
            top = GAP + LABEL_HEIGHT
            return sheet.crop((GAP, top, GAP + width, top + height))
    return None


def image_grid(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Image.Image:
    """One sheet: a labelled row for each (label, images); images are (H, W, 3) uint8."""
    scale = max(1, COMFORTABLE_SIDE // max(rows[0][1][0].shape[:2]))
    cells = [[_enlarge(image, scale) for image in images] for _, images in rows]
    width = max(sum(cell.width + GAP for cell in row) for row in cells) + GAP
    heights = [LABEL_HEIGHT + max(cell.height for cell in row) + GAP for row in cells]
    sheet = Image.new("RGB", (width, sum(heights) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    top = GAP
    for (label, _), row, height in zip(rows, cells, heights, strict=True):
        draw.text((GAP, top + 2), label, fill=INK, font=font)
        left = GAP
        for cell in row:
            sheet.paste(cell, (left, top + LABEL_HEIGHT))
            left += cell.width + GAP
        top += height
    return sheet


def _enlarge(pixels: np.ndarray, scale: int) -> Image.Image:
    image = Image.fromarray(pixels)
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST) if scale > 1 else image

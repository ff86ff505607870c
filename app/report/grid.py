"""Images side by side on one sheet, with labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4
LABEL_HEIGHT = 18
BACKGROUND, INK = (250, 250, 250), (40, 40, 40)
# Small images are enlarged to about this size, so that a 64-pixel teacher can be looked at.
COMFORTABLE_SIDE = 128


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

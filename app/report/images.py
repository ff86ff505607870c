"""Images inside the report's page: small enough to carry, as data URLs."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# Images up to this side are kept exactly, as PNG, and enlarged by the browser pixel by pixel.
CRISP_SIDE = 128
LARGEST_SIDE = 256
# All larger images of a page together; at JPEG's quarter of a byte that is about 3 MB of page.
PIXEL_BUDGET = 9_000_000
JPEG_QUALITY = 85


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
    image = Image.fromarray(pixels)
    if not crisp:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    source = _data_url(image, lossless=crisp)
    return EmbeddedImage(source, image.width, image.height, crisp)


def _data_url(image: Image.Image, *, lossless: bool) -> str:
    """PNG, or JPEG where that is allowed and smaller."""
    image = image.convert("RGB")
    name, content = "png", _encoded(image, format="PNG")
    if not lossless:
        jpeg = _encoded(image, format="JPEG", quality=JPEG_QUALITY)
        name, content = ("jpeg", jpeg) if len(jpeg) < len(content) else (name, content)
    return f"data:image/{name};base64,{base64.b64encode(content).decode('ascii')}"


def _encoded(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()

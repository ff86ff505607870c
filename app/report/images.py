"""Pictures inside the report's page: small enough to carry, as data URLs."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import Any

import numpy as np
from PIL import Image

# Pictures up to this side are kept exactly, as PNG, and enlarged by the browser pixel by pixel.
CRISP_SIDE = 128
LARGEST_SIDE = 256
# All larger pictures of a page together; at JPEG's quarter of a byte that is about 3 MB of page.
PIXEL_BUDGET = 9_000_000
JPEG_QUALITY = 85


def embedded_side(count: int) -> int:
    """Longest side at which `count` pictures stay within the page's budget."""
    affordable = math.isqrt(PIXEL_BUDGET // max(1, count))
    return max(CRISP_SIDE, min(LARGEST_SIDE, affordable))


def picture_tag(picture: np.ndarray, alt: str, side: int) -> str:
    """An <img> that carries a uint8 (H, W, 3) picture, its longest side at most `side`."""
    crisp = max(picture.shape[:2]) <= CRISP_SIDE
    image = Image.fromarray(picture)
    if not crisp:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = ' class="crisp"' if crisp else ""
    return (
        f'<img{kind} src="{_data_url(image, lossless=crisp)}" width="{image.width}" '
        f'height="{image.height}" alt="{html.escape(alt)}" title="{html.escape(alt)}">'
    )


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

"""The texts that programs keep in an image, read without its pixels and without trust.

A JPEG, WebP or AVIF has them in its EXIF block (a small TIFF) or in a comment, which Pillow reads.
What a file is, is told by its first bytes: names of images often lie.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, features

from ..errors import ImageError
from .png_text import SIGNATURE, read_png_text, text_of_bytes

KINDS = "PNG, JPEG, WebP or AVIF"
PLUGINS = {
    re.compile(rb"\xff\xd8\xff"): "Jpeg",
    re.compile(rb"RIFF....WEBP", re.DOTALL): "WebP",
    re.compile(rb"....ftypavi[fs]", re.DOTALL): "Avif",
}
"""Pillow's plugin by how its files begin."""
EXIF_POINTER, SOFTWARE, DESCRIPTION, USER_COMMENT = 0x8769, 0x0131, 0x010E, 0x9286
XP_COMMENT = 0x9C9C
"""Windows' own comment, in UTF-16."""
NAMED_TAGS = range(0x0100, 0x0111)
"""ComfyUI writes "name:content" into Model, Make and the tags before them."""
NAMED = re.compile(r"(\w{1,40}):\s*(?=[{\[])")
CODES = (b"ASCII\0\0\0", b"UNICODE\0", b"JIS\0\0\0\0\0", bytes(8))
"""What a UserComment begins with: how the rest is encoded (EXIF 2.32, 4.6.5)."""


def read_image_text(path: Path) -> dict[str, str]:
    """The texts in the PNG, JPEG, WebP or AVIF at `path` by name; the first of a name counts.

    Raises:
        ImageError: none of these, damaged, or an AVIF where Pillow reads none.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(12)
    if head.startswith(SIGNATURE):
        return read_png_text(path)
    kind = next((plugin for begins, plugin in PLUGINS.items() if begins.match(head)), None)
    if kind is None:
        raise ImageError(f"{path.name} is no {KINDS}.")
    if kind == "Avif" and not _reads_avif():
        raise ImageError(f"{path.name} is an AVIF, which this Pillow does not read; 11.3 does.")
    found: dict[str, str] = {}
    try:
        with warnings.catch_warnings(), _image_file(kind)(path) as image:
            warnings.simplefilter("ignore")
            for name, text in _texts(image):
                if text:
                    found.setdefault(name, text)
    except Exception as error:  # whatever Pillow comes upon in a damaged file
        raise ImageError(f"{path.name} is damaged: {error}.") from error
    return found


def _reads_avif() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow before 11.3 does not know the word
        return bool(features.check("avif"))


def _image_file(kind: str) -> Callable[[Path], Image.Image]:
    """Pillow's class of those files; Image.open would refuse very large ones."""
    return getattr(importlib.import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile")


def _texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    exif = image.getexif()
    for tag, value in [*exif.items(), *exif.get_ifd(EXIF_POINTER).items()]:
        yield from _named(tag, _bytes(value))
    yield "Comment", text_of_bytes(_bytes(image.info.get("comment")).rstrip(b"\0"))


def _bytes(value: Any) -> bytes:
    """The bytes of a tag's value, which Pillow decodes as Latin-1 where it is of letters."""
    if isinstance(value, str):
        return value.encode("latin-1", "replace")
    return value if isinstance(value, bytes) else b""


def _named(tag: int, value: bytes) -> Iterator[tuple[str, str]]:
    if tag == USER_COMMENT:
        yield "UserComment", _user_comment(value)
        return
    if tag == XP_COMMENT:
        yield "Comment", value.decode("utf-16-le", "replace").rstrip("\0")
        return
    if tag == SOFTWARE:
        yield "Software", text_of_bytes(value.rstrip(b"\0"))
        return
    if tag not in NAMED_TAGS:
        return
    text = text_of_bytes(value.rstrip(b"\0"))
    named = NAMED.match(text)
    if named:
        yield named[1].lower(), text[named.end() :]
    elif tag == DESCRIPTION:
        yield "Description", text


def _user_comment(value: bytes) -> str:
    """The text of a UserComment; one without a code in front is read as it stands."""
    code = value[:8]
    if code not in CODES:
        return text_of_bytes(value.rstrip(b"\0"))
    text = value[8:]
    if code != b"UNICODE\0" or b"\0" not in text:
        return text_of_bytes(text.rstrip(b"\0"))
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", "replace").rstrip("\0")
    # A1111 writes big endian whatever the block's order, others the block's: zeros stand where
    # the high bytes of Latin letters are, which every line of settings has.
    high, low = text[::2].count(0), text[1::2].count(0)
    return text.decode("utf-16-le" if low > high else "utf-16-be", "replace").rstrip("\0")

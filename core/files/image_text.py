"""The texts that programs keep in a PNG, JPEG or WebP, read without its pixels and without trust.

A JPEG or WebP has them in its EXIF block (a small TIFF) or in a comment. What a file is, is told by
its first bytes: names of images often lie.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import ImageError
from .png_text import MAX_CHUNKS, MAX_TEXT_BYTES, SIGNATURE, read_png_text, text_of_bytes

EXIF_HEAD = b"Exif\0\0"
EXIF_POINTER, SOFTWARE, DESCRIPTION, USER_COMMENT = 0x8769, 0x0131, 0x010E, 0x9286
XP_COMMENT = 0x9C9C
"""Windows' own comment, in UTF-16."""
NAMED_TAGS = range(0x0100, 0x0111)
"""ComfyUI writes "name:content" into Model, Make and the tags before them."""
NAMED = re.compile(r"(\w{1,40}):\s*(?=[{\[])")
BYTES, ASCII, POINTER, UNDEFINED = 1, 2, 4, 7
MAX_ENTRIES = 1000
CODES = (b"ASCII\0\0\0", b"UNICODE\0", b"JIS\0\0\0\0\0", bytes(8))
"""What a UserComment begins with: how the rest is encoded (EXIF 2.32, 4.6.5)."""
START_OF_SCAN, END_OF_IMAGE, APP1, COMMENT = 0xDA, 0xD9, 0xE1, 0xFE
ALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a length and content."""


def read_image_text(path: Path) -> dict[str, str]:
    """The texts in the PNG, JPEG or WebP at `path` by name; the first of a name counts.

    Raises:
        ImageError: none of these, damaged, or with more text than an image's settings can have.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(12)
        if head.startswith(b"\xff\xd8\xff"):
            stream.seek(2)
            return _jpeg(stream, path.name)
        if head[:4] == b"RIFF" and head[8:] == b"WEBP":
            return _webp(stream, path.name)
    if head.startswith(SIGNATURE):
        return read_png_text(path)
    raise ImageError(f"{path.name} is no PNG, JPEG or WebP.")


def _jpeg(stream: BinaryIO, name: str) -> dict[str, str]:
    """The texts before the image data; a file cut off ends like a whole one."""
    found: dict[str, str] = {}
    for _ in range(MAX_CHUNKS):
        marker = _marker(stream, name)
        if marker in (None, START_OF_SCAN, END_OF_IMAGE):
            return found
        if marker in ALONE:
            continue
        length = int.from_bytes(stream.read(2), "big") - 2
        if length < 0:
            return found
        if marker not in (APP1, COMMENT):
            stream.seek(length, 1)
            continue
        content = stream.read(length)
        if marker == COMMENT:
            found.setdefault("Comment", text_of_bytes(content.rstrip(b"\0")))
        elif content.startswith(EXIF_HEAD):
            _take(found, content[len(EXIF_HEAD) :])
    raise ImageError(f"{name} has more than {MAX_CHUNKS:,} segments.")


def _marker(stream: BinaryIO, name: str) -> int | None:
    """The next marker, fill bytes before it left out; None where the file ends."""
    byte = stream.read(1)
    if byte and byte != b"\xff":
        raise ImageError(f"{name} is damaged: a segment of no known kind.")
    while byte == b"\xff":
        byte = stream.read(1)
    return byte[0] if byte else None


def _webp(stream: BinaryIO, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for _ in range(MAX_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            return found
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"EXIF":
            stream.seek(length + length % 2, 1)
            continue
        if length > MAX_TEXT_BYTES:
            raise ImageError(f"{name} has a text of {length >> 20} MiB.")
        _take(found, stream.read(length).removeprefix(EXIF_HEAD))
        stream.seek(length % 2, 1)
    raise ImageError(f"{name} has more than {MAX_CHUNKS:,} chunks.")


def _take(found: dict[str, str], block: bytes) -> None:
    """Enter the texts of an EXIF block; one that is damaged holds none."""
    for name, text in exif_texts(block):
        if text:
            found.setdefault(name, text)


def exif_texts(block: bytes) -> Iterator[tuple[str, str]]:
    """(name, text) of what an EXIF block, which is a TIFF, holds."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return
    pointers = [struct.unpack_from(f"{order}I", block, 4)[0]]
    for start in pointers:  # the second, if there is one, is found in the first
        for tag, kind, value in _entries(block, start, order):
            if tag == EXIF_POINTER and kind == POINTER and len(pointers) == 1:
                pointers.append(struct.unpack(f"{order}I", value)[0])
            elif kind in (BYTES, ASCII, UNDEFINED):
                yield from _named(tag, value)


def _entries(block: bytes, start: int, order: str) -> Iterator[tuple[int, int, bytes]]:
    """(tag, type, bytes of the value) of each entry of a directory that has texts or a pointer."""
    if start + 2 > len(block):
        return
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for place in range(start + 2, start + 2 + 12 * min(count, MAX_ENTRIES), 12):
        if place + 12 > len(block):
            return
        tag, kind, size, offset = struct.unpack_from(f"{order}HHII", block, place)
        if kind == POINTER:
            yield tag, kind, block[place + 8 : place + 12]
        elif size <= 4:
            yield tag, kind, block[place + 8 : place + 8 + size]
        else:
            yield tag, kind, block[offset : offset + size]


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

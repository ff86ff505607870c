"""The text chunks of a PNG, read without its pixels and without trusting it.

Image data is stepped over, so a folder of thousands of large images is read in seconds.
Compressed text may not grow beyond a limit, whatever it claims.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

from ..errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
MAX_TEXT_BYTES = 8 << 20
MAX_CHUNKS = 100_000


def read_png_text(path: Path) -> dict[str, str]:
    """The text chunks of the PNG at `path` by keyword; the first of a keyword counts.

    Raises:
        ImageError: no PNG, damaged, or with more text than an image's settings can have.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        if stream.read(8) != SIGNATURE:
            raise ImageError(f"{path.name} is no PNG.")
        found: dict[str, str] = {}
        for _ in range(MAX_CHUNKS):
            kind = _chunk(stream, size, path.name, found)
            if kind == b"IEND":
                return found
    raise ImageError(f"{path.name} has more than {MAX_CHUNKS:,} chunks.")


def _chunk(stream: BinaryIO, size: int, name: str, found: dict[str, str]) -> bytes:
    """Read or step over one chunk; returns its type. A file cut off ends like a whole one."""
    head = stream.read(8)
    if len(head) < 8:
        return b"IEND"
    length, kind = int.from_bytes(head[:4], "big"), head[4:]
    if not kind.isalpha():
        raise ImageError(f"{name} is damaged: a chunk of no known kind.")
    if kind not in TEXT_CHUNKS or stream.tell() + length > size:
        stream.seek(length + 4, 1)
        return kind
    if length > MAX_TEXT_BYTES:
        raise ImageError(f"{name} has a text of {length >> 20} MiB.")
    content = stream.read(length)
    stream.seek(4, 1)
    keyword, text = _decoded(kind, content, name)
    found.setdefault(keyword, text)
    return kind


def _decoded(kind: bytes, content: bytes, name: str) -> tuple[str, str]:
    """(keyword, text) of a text chunk (PNG specification, 11.3.3)."""
    keyword, _, rest = content.partition(b"\0")
    if kind == b"tEXt":
        return keyword.decode("latin-1"), text_of_bytes(rest)
    if kind == b"zTXt":
        return keyword.decode("latin-1"), text_of_bytes(_inflated(rest[1:], name))
    compressed, body = rest[:1] == b"\x01", rest[2:]
    _language, _, body = body.partition(b"\0")
    _translated, _, body = body.partition(b"\0")
    text = _inflated(body, name) if compressed else body
    return keyword.decode("latin-1"), text.decode("utf-8", errors="replace")


def text_of_bytes(content: bytes) -> str:
    """A text of bytes: UTF-8 where it is that, else Latin-1, which PNG's specification asks for."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _inflated(content: bytes, name: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(content, MAX_TEXT_BYTES)
    except zlib.error as error:
        raise ImageError(f"{name} is damaged: its text cannot be unpacked ({error}).") from error
    if inflater.unconsumed_tail:
        raise ImageError(f"{name} has a packed text of more than {MAX_TEXT_BYTES >> 20} MiB.")
    return text

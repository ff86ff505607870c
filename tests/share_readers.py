"""What sites and hosts read, written anew from the published definitions; shares no code with ours.

safetensors: eight bytes of length, JSON, tensors. Hashes: sd-scripts' library/train_util.py. PNG:
the specification's chunks. Pictures' text: as Civitai's automatic.metadata.ts reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "img", "hr", "link"}
SD_KEYS = {
    "Seed": "seed",
    "CFG scale": "cfgScale",
    "Sampler": "sampler",
    "Steps": "steps",
    "Clip skip": "clipSkip",
}


def safetensors_parts(path: Path) -> tuple[dict, dict, bytes]:
    """(tensors' entries, metadata, body)."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length].decode("utf-8"))
    return header, header.pop("__metadata__"), data[8 + length :]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_hashes(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return {
        "AutoV1": sha256(data[0x100000 : 0x100000 + 0x10000])[:8],
        "AutoV2": sha256(data)[:10],
        "AutoV3": sha256(data[8 + length :])[:12],
        "SHA256": sha256(data),
    }


def png_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, found = 8, []
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (crc,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert crc == zlib.crc32(kind + content)
        found.append((kind, content))
        place += 12 + length
    return found


def png_size(path: Path) -> tuple[int, int]:
    return struct.unpack(">II", dict(png_chunks(path))[b"IHDR"][:8])


def png_text(path: Path, keyword: str) -> str:
    for kind, content in png_chunks(path):
        name, _, rest = content.partition(b"\0")
        if name.decode("latin-1") != keyword:
            continue
        if kind == b"tEXt":
            return rest.decode("latin-1")
        if kind == b"iTXt":
            assert rest[:1] == b"\0"  # not compressed
            return rest[2:].split(b"\0", 2)[2].decode("utf-8")
    raise AssertionError(f"{path} has no text {keyword}")


def details(line: str) -> dict:
    """The settings line, character by character as Civitai goes through it."""
    found: dict = {}
    key = value = ""
    quoted = False
    for character in line:
        if character == '"':
            if quoted:
                found[key] = details(value.strip())
                key = ""
            quoted = not quoted
        elif character == ":" and not quoted:
            key, value = SD_KEYS.get(value.strip(), value.strip()), ""
        elif character == "," and not quoted:
            if key:
                found[key] = value.strip()
            key = value = ""
        else:
            value += character
    if key:
        found[key] = value.strip()
    return found


def civitai_reads(text: str) -> dict:
    """Prompt, settings and resources of a picture's text."""
    assert "Steps: " in text
    lines = [line for line in text.split("\n") if line.strip()]
    line = next(line for line in lines if line.startswith("Steps: "))
    lines.remove(line)
    prompt, *negative = [part.strip() for part in "\n".join(lines).split("Negative prompt:")]
    found = {**details(line), "prompt": prompt, "negative": " ".join(negative)}
    nets = re.findall(r"<(lora|hypernet):([a-zA-Z0-9_\.\-]+):([0-9.]+)>", prompt)
    hashes = found.pop("Lora hashes", {})
    found["resources"] = [
        {"type": kind, "name": name, "weight": float(weight), "hash": hashes.get(name)}
        for kind, name, weight in nets
    ]
    return found


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read_html(text: str) -> tuple[list[tuple[str, dict]], str]:
    """(tags with attributes, all text); every tag that opens is closed, in order."""
    parser = _Balance()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser.seen, "".join(parser.texts)

"""Pictures of the emoji world, from pinned packages: fetched, checked, rendered, kept in a cache.

Four sets draw each thing in their own style, and one package names, tags and groups them all.
`npm pack` fetches each package, its integrity hash is compared with the one written here, resvg
renders the SVGs, and everything lands in a cache folder outside the checkout. Licences: NOTICE.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOG = logging.getLogger("dpdmd_studio.emoji_teacher")
SIZE = 128
"""Side of a kept picture in pixels."""
RENDERED = 256
PACKAGES = {
    "noto": (
        "@iconify-json/noto@1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "twemoji": (
        "@iconify-json/twemoji@1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "flat": (
        "@iconify-json/fluent-emoji-flat@1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "3d": (
        "@lobehub/fluent-emoji-3d@1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
}
NAMES = (
    "emojibase-data@17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
STYLES = tuple(PACKAGES)


@dataclass(frozen=True)
class Emoji:
    """What emojibase says of one emoji."""

    name: str
    code: str
    """Code points in lower-case hexadecimal, joined by dashes."""
    group: str
    subgroup: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """Every picture of a selection: `pixels[i]` shows `names[i]` in the style `styles[i]`."""

    pixels: NDArray[np.uint8]
    """Premultiplied RGBA, shape (N, SIZE, SIZE, 4)."""
    names: tuple[str, ...]
    styles: tuple[str, ...]


def package(cache: Path, spec: str, integrity: str) -> Path:
    """The folder of an unpacked package, fetched by npm where the cache lacks it.

    Raises:
        RuntimeError: npm gives another file than the one that is pinned.
    """
    folder = cache / re.sub(r"[^a-z0-9.]+", "-", spec).strip("-")
    if folder.is_dir():
        return folder / "package"
    cache.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", spec, "--json", "--silent"],
        cwd=cache, check=True, capture_output=True, text=True,
    )  # fmt: skip
    archive = cache / json.loads(packed.stdout)[0]["filename"]
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != integrity:
        raise RuntimeError(f"{spec}: expected sha512 {integrity}, found {found}: not unpacked")
    partial = folder.with_suffix(".part")
    with tarfile.open(archive) as file:
        file.extractall(partial, filter="data")
    partial.rename(folder)
    return folder / "package"


def all_emoji(cache: Path) -> dict[str, Emoji]:
    """Every emoji of the kinds that make pictures, by name, in emojibase's order.

    Gendered and skin-toned forms, flags and symbols are left out: they look like their neighbours.
    """
    folder = package(cache, *NAMES)
    meta = json.loads((folder / "meta" / "groups.json").read_text("utf-8"))
    found = {}
    for entry in json.loads((folder / "en" / "data.json").read_text("utf-8")):
        group = meta["groups"].get(str(entry.get("group")), "")
        if group in ("", "component", "symbols", "flags") or "gender" in entry:
            continue
        name = entry["label"].lower()
        found[name] = Emoji(
            name=name,
            code=entry["hexcode"].lower(),
            group=group,
            subgroup=meta["subgroups"][str(entry["subgroup"])],
            tags=tuple(entry.get("tags", ())),
        )
    return found


def render(cache: Path, selection: Mapping[str, Emoji]) -> Pictures:
    """The pictures of the selection in every style that has them, rendered once and kept."""
    key = hashlib.sha256(json.dumps([*selection, SIZE]).encode()).hexdigest()[:12]
    kept = cache / f"pictures-{key}.npz"
    if not kept.exists():
        found = list(_rendered(cache, selection))
        partial = kept.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                pixels=np.stack([pixels for pixels, _, _ in found]),
                names=np.array([name for _, name, _ in found]),
                styles=np.array([style for _, _, style in found]),
            )
        partial.rename(kept)
    with np.load(kept) as file:
        names, styles = file["names"].tolist(), file["styles"].tolist()
        return Pictures(file["pixels"], tuple(names), tuple(styles))


def _rendered(
    cache: Path, selection: Mapping[str, Emoji]
) -> Iterator[tuple[NDArray[np.uint8], str, str]]:
    for style, (spec, integrity) in PACKAGES.items():
        folder = package(cache, spec, integrity)
        source = _webp_of if style == "3d" else _svg_of(folder)
        missing = []
        for name, emoji in selection.items():
            image = source(folder, emoji)
            if image is None:
                missing.append(name)
            else:
                yield _shrunk(image), name, style
        LOG.info("%s: %d pictures, missing %s", style, len(selection) - len(missing), missing)


def _webp_of(folder: Path, emoji: Emoji) -> Image.Image | None:
    for code in (emoji.code, emoji.code.replace("-fe0f", ""), f"{emoji.code}-fe0f"):
        path = folder / "assets" / f"{code}.webp"
        if path.exists():
            return Image.open(path).convert("RGBA")
    return None


def _svg_of(folder: Path):
    import resvg_py

    icons = json.loads((folder / "icons.json").read_text("utf-8"))
    icon_set, aliases = icons["icons"], icons.get("aliases", {})

    def image_of(_: Path, emoji: Emoji) -> Image.Image | None:
        slug = re.sub(r"[^a-z0-9]+", "-", re.sub("['\u2019]", "", emoji.name)).strip("-")
        while slug in aliases and slug not in icon_set:
            slug = aliases[slug]["parent"]
        if slug not in icon_set:
            return None
        icon = icon_set[slug]
        box = [icon.get(k, icons.get(k, d)) for k, d in _BOX.items()]
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{" ".join(map(str, box))}" width="{RENDERED}" height="{RENDERED}">'
            f"{icon['body']}</svg>"
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
        return Image.open(io.BytesIO(png)).convert("RGBA")

    return image_of


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


def _shrunk(image: Image.Image) -> NDArray[np.uint8]:
    """Premultiplied (else transparent pixels darken the edge) and brought to SIZE."""
    image = image.resize((RENDERED, RENDERED)) if image.size != (RENDERED, RENDERED) else image
    rgba = np.asarray(image, np.float32)
    rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:] / 255, rgba[..., 3:]], axis=-1)
    side = RENDERED // SIZE
    mean = rgba.reshape(SIZE, side, SIZE, side, 4).mean(axis=(1, 3))
    return (mean + 0.5).clip(0, 255).astype(np.uint8)

"""The emoji world: what its pictures show, and captions that tell a part of it.

A picture shows one thing, named, in one style on one background, at one size and place. A caption
may leave any of that open, and may name the thing by its class ("bird"), by a wider class
("animal") or by a tag ("pet"): then one caption has many right pictures, and how many of them the
seeds of one prompt reach is what diversity is counted by. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

FACTS = Path(__file__).parents[2] / "assets" / "emoji-world.json"
SIZES = {"small": (0.66, 0.78), "large": (0.94, 1.04)}
"""Share of the frame's side that a picture takes when the caption says so; else any between."""
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
FAR = 0.6
"""A picture is on a side when it lies at least this share of its free way from the middle."""
HELD_OUT_SHARE = 0.15
"""Of the open captions, which have neither name nor pair to be held out by."""


@dataclass(frozen=True)
class Scene:
    """What is in one picture.

    `right` and `down` say where it lies: -1 and 1 touch the frame, 0 is the middle. `scale` is the
    side of the drawing as a share of the frame's.
    """

    name: str
    style: str
    background: str
    scale: float
    right: float
    down: float

    @property
    def size(self) -> str:
        """A word for the size, or none between the words."""
        return next((k for k, (low, high) in SIZES.items() if low <= self.scale <= high), "")

    @property
    def place(self) -> str:
        """The side on which a small picture plainly lies, or none."""
        if self.size != "small" or max(abs(self.right), abs(self.down)) < FAR:
            return ""
        if abs(self.right) >= abs(self.down):
            return "right" if self.right > 0 else "left"
        return "bottom" if self.down > 0 else "top"


@dataclass(frozen=True)
class Said:
    """What a caption says: the noun, and whatever else it does not leave open."""

    noun: str
    style: str = ""
    background: str = ""
    size: str = ""
    place: str = ""

    def caption(self, wording: int = 0) -> str:
        """The caption in one of three wordings: "3d owl on blue", "3d owl, blue background", ..."""
        words = [word for word in (self.size, self.style, self.noun) if word]
        if wording == 2 and self.style:
            words = [word for word in (self.size, self.noun) if word]
        text = " ".join(words) + (f" {PLACES[self.place]}" if self.place else "")
        if wording == 2 and self.style:
            text += f", {self.style}"
        if self.background:
            ending = (" on {}", ", {} background", ", {}")[wording].format(self.background)
            text += ending
        return text


class World:
    """The names with their classes, tags and styles, and which of them are kept from whom."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.styles = tuple(facts["styles"])
        self.backgrounds = {k: tuple(v) for k, v in facts["backgrounds"].items()}
        self.classes = {k: tuple(v["names"]) for k, v in facts["classes"].items()}
        self.class_of = {n: k for k, names in self.classes.items() for n in names}
        self.wider = {k: v["of"] for k, v in facts["classes"].items() if v["of"]}
        self.tags = {n: tuple(t) for v in facts["classes"].values() for n, t in v["names"].items()}
        self.names = tuple(self.class_of)
        self.unseen_pairs = frozenset(map(tuple, facts["unseen_pairs"]))
        """(name, style) pairs that not even the teacher has seen."""
        self.held_out_names = frozenset(facts["held_out_names"])
        self.held_out_pairs = frozenset(map(tuple, facts["held_out_pairs"]))
        """(name, style) pairs that no student is trained with."""
        self.merged = {name: group[0] for group in facts.get("merged", ()) for name in group}

    @cached_property
    def nouns(self) -> dict[str, frozenset[str]]:
        """Every noun that a caption may have, with the names that are right for it."""
        found: dict[str, set[str]] = {name: {name} for name in self.names}
        for title, names in self.classes.items():
            for noun in {title, self.wider.get(title, title)}:
                found.setdefault(noun, set()).update(names)
        for name, tags in self.tags.items():
            for tag in tags:
                if tag not in self.class_of and tag not in self.classes:
                    found.setdefault(tag, set()).add(name)
        return {noun: frozenset(names) for noun, names in found.items()}

    @cached_property
    def open_nouns(self) -> tuple[str, ...]:
        """The classes and the wider classes, on which diversity is counted."""
        return (*self.classes, *dict.fromkeys(self.wider.values()))

    def parse(self, text: str) -> Said:
        """What a caption says, whatever the order of its words; the noun is "" where none is known.

        The longest noun that the text holds is meant ("red apple" is no apple in red), and the last
        colour ("red car on blue" is on blue).
        """
        padded = f" {' '.join(words_of(text))} "
        held = [n for n in self.nouns if f" {' '.join(words_of(n))} " in padded]
        noun = max(held, key=len, default="")
        rest = padded.replace(f" {' '.join(words_of(noun))} ", " ", 1).split()

        def last(words: Container[str]) -> str:
            return next((word for word in reversed(rest) if word in words), "")

        return Said(noun, last(self.styles), last(self.backgrounds), last(SIZES), last(PLACES))

    def answers(self, text: str) -> frozenset[str]:
        """The names that are right for a caption; none where it holds no known noun."""
        return self.nouns.get(self.parse(text).noun, frozenset())

    def is_held_out(self, said: Said) -> bool:
        """Whether a caption with these facts is kept for evaluation, away from every student.

        By its name, by its (name, style) pair, or, for an open noun that also says style or
        background, by a hash that takes 15 % of them. The bare open nouns are too few to be spared.
        """
        if said.noun in self.class_of:
            pair = (said.noun, said.style)
            return said.noun in self.held_out_names or pair in self.held_out_pairs
        if not (said.style or said.background):
            return False
        key = f"{said.noun}|{said.style}|{said.background}".encode()
        return hashlib.sha256(key).digest()[0] < 256 * HELD_OUT_SHARE

    def nouns_of(self, name: str) -> Iterator[str]:
        """Every noun by which a caption may call the thing, its name first."""
        yield name
        title = self.class_of[name]
        yield title
        if title in self.wider:
            yield self.wider[title]
        yield from (tag for tag in self.tags[name] if tag in self.nouns and tag != title)


def words_of(text: str) -> list[str]:
    """Lower-case words of a text: letters, digits, inner dashes."""
    return re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower())


@lru_cache(maxsize=1)
def world() -> World:
    """The world of the embedded emoji teachers."""
    return World(json.loads(FACTS.read_text("utf-8")))


def random_said(scene: Scene, source: random.Random) -> Said:
    """What a training caption says of a scene: the name, or a class or a tag; and some of the rest.

    Half of the captions name the thing; style and background are said by half of all, size and
    place by a quarter of those that could.
    """
    here = world()
    nouns = list(here.nouns_of(scene.name))
    draw = source.random()
    if draw < 0.5:
        noun = scene.name
    elif draw < 0.75:
        noun = nouns[1]
    elif draw < 0.85:
        noun = here.wider.get(nouns[1], nouns[1])
    else:
        noun = source.choice(nouns)
    return Said(
        noun=noun,
        style=scene.style if source.random() < 0.5 else "",
        background=scene.background if source.random() < 0.5 else "",
        size=scene.size if source.random() < 0.25 else "",
        place=scene.place if source.random() < 0.25 else "",
    )


def caption_sample(held_out: bool, count: int, seed: int) -> list[str]:
    """`count` different captions of one side, in turn by a name and by a class.

    Held-out ones that leave the name open name a class or a wider one, on which diversity is
    counted; those to train on may have any noun.
    """
    here, source, found = world(), random.Random(f"{held_out}-{seed}"), dict[str, None]()
    while len(found) < count:
        said = random_said(random_scene(source), source)
        named = said.noun in here.class_of
        if named != (len(found) % 2 == 0) or here.is_held_out(said) != held_out:
            continue
        if named or not held_out or said.noun in here.open_nouns:
            found.setdefault(said.caption(source.randrange(3)))
    return list(found)


def random_scene(source: random.Random, names: Sequence[str] | None = None) -> Scene:
    """A scene with name, style and background all even; never a pair kept from the teacher.

    Three of four fill their frame. The others are small, in the middle or plainly on one side: so
    few placements that a small network draws its things sharply at each of them.
    """
    here = world()
    while True:
        name, style = source.choice(names or here.names), source.choice(here.styles)
        if (name, style) not in here.unseen_pairs:
            break
    background, small = source.choice(list(here.backgrounds)), source.random() < 0.25
    if not small:
        scale, right, down = source.uniform(0.94, 1.0), source.uniform(-1, 1), source.uniform(-1, 1)
        return Scene(name, style, background, scale, right, down)
    right, down = source.uniform(-0.3, 0.3), source.uniform(-0.3, 0.3)
    side = source.choice(("", *PLACES))
    if side in ("left", "right"):
        right = source.uniform(0.7, 1) * (1 if side == "right" else -1)
    elif side:
        down = source.uniform(0.7, 1) * (1 if side == "bottom" else -1)
    return Scene(name, style, background, source.uniform(0.68, 0.76), right, down)

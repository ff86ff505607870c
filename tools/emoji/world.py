"""Chooses the emoji world, and writes it down where the product reads it.

    python tools/make_emoji_teacher.py world --cache CACHE

The names were chosen by eye: each is plainly different from the others at 64 pixels, in all four
styles. Left out for looking like a neighbour: moons, clock faces, most smileys, the goose (swan),
the mango (tangerine), camels, trains; insects of thin lines vanish at this size.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from . import pictures

CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "bird": (
        "animal",
        (
            "turkey", "chicken", "rooster", "baby chick", "bird", "penguin", "dove", "eagle",
            "duck", "swan", "owl", "flamingo", "peacock", "parrot",
        ),
    ),
    "sea animal": (
        "animal",
        (
            "spouting whale", "dolphin", "seal", "fish", "tropical fish", "blowfish", "shark",
            "octopus", "spiral shell", "jellyfish", "crab", "lobster", "shrimp", "squid",
        ),
    ),
    "bug": (
        "animal",
        (
            "snail", "butterfly", "bug", "ant", "honeybee", "beetle", "lady beetle", "spider",
            "scorpion", "worm",
        ),
    ),
    "mammal": (
        "animal",
        (
            "monkey face", "dog face", "fox", "cat face", "lion", "unicorn", "zebra", "cow face",
            "pig face", "giraffe", "elephant", "mouse face", "rabbit face", "hedgehog", "bear",
            "koala", "panda",
        ),
    ),
    "fruit": (
        "food",
        (
            "grapes", "watermelon", "tangerine", "lemon", "banana", "pineapple", "red apple",
            "green apple", "pear", "peach", "cherries", "strawberry", "blueberries", "kiwi fruit",
            "coconut",
        ),
    ),
    "sweet": (
        "food",
        (
            "soft ice cream", "shaved ice", "doughnut", "cookie", "birthday cake", "shortcake",
            "cupcake", "chocolate bar", "candy", "lollipop", "custard", "honey pot",
        ),
    ),
    "flower": (
        "",
        (
            "bouquet", "cherry blossom", "lotus", "rosette", "rose", "wilted flower", "hibiscus",
            "sunflower", "tulip", "hyacinth",
        ),
    ),
    "face": (
        "",
        (
            "grinning face with big eyes", "rolling on the floor laughing",
            "face with tears of joy", "upside-down face", "winking face", "smiling face with halo",
            "smiling face with hearts", "smiling face with heart-eyes", "star-struck",
            "face blowing a kiss", "smiling face with sunglasses", "cowboy hat face",
        ),
    ),
    "vehicle": (
        "",
        (
            "locomotive", "bus", "ambulance", "fire engine", "police car", "taxi", "automobile",
            "delivery truck", "tractor", "motorcycle", "bicycle", "kick scooter",
        ),
    ),
}  # fmt: skip
"""Class to the wider class it belongs to (or none) and to its names."""
BACKGROUNDS = {
    "white": (245, 245, 245),
    "grey": (150, 150, 155),
    "black": (22, 22, 26),
    "red": (206, 62, 60),
    "orange": (240, 160, 70),
    "yellow": (246, 220, 110),
    "green": (96, 170, 90),
    "turquoise": (120, 210, 205),
    "blue": (80, 130, 220),
    "purple": (140, 95, 190),
    "pink": (246, 178, 200),
    "brown": (130, 92, 66),
}
TAGS = frozenset(
    {
        "angel", "apple", "bee", "berry", "bike", "blueberry", "bunny", "cake", "car", "cat",
        "chick", "chocolate", "citrus", "cow", "cowboy", "dessert", "dog", "donut", "farm",
        "grape", "heart", "insect", "kiss", "kitten", "kiwi", "ladybird", "ladybug", "laugh",
        "love", "monkey", "mouse", "ocean", "pet", "pig", "plant", "police", "puppy", "rabbit",
        "scooter", "shell", "smile", "sunglasses", "train", "tropical", "truck", "whale", "wink",
    }
)  # fmt: skip
"""Emojibase's tags that name what a picture shows; the others ("ostentatious") do not."""
UNSEEN_PAIRS, HELD_OUT_SHARE = 20, 0.15


def selection(cache: Path) -> dict[str, pictures.Emoji]:
    """The emoji of the world by name, in the order of the classes."""
    found = pictures.all_emoji(cache)
    names = [name for _, members in CLASSES.values() for name in members]
    if missing := sorted(set(names) - set(found)):
        raise RuntimeError(f"emojibase has no {missing}")
    return {name: found[name] for name in names}


def strangers(cache: Path) -> dict[str, pictures.Emoji]:
    """Emoji of subgroups that the world does not touch: what the judge must not recognise."""
    chosen = selection(cache)
    touched = {emoji.subgroup for emoji in chosen.values()}
    touched |= {"plant-other", "food-vegetable", "emotion", "cat-face", "monkey-face", "event"}
    touched |= {"animal-amphibian", "animal-reptile", "transport-air", "transport-water"}
    found = pictures.all_emoji(cache)
    return {
        name: emoji
        for name, emoji in found.items()
        if emoji.subgroup not in touched
        and not emoji.subgroup.startswith("face-")
        and emoji.group != "people-body"
    }


def facts(drawn: pictures.Pictures, chosen: Mapping[str, pictures.Emoji]) -> dict:
    """What the product has to know of the world, ready for JSON."""
    pairs = sorted(zip(drawn.names, drawn.styles, strict=True))
    shuffled = random.Random(0)
    names = list(chosen)
    held_out = sorted(shuffled.sample(names, round(HELD_OUT_SHARE * len(names))))
    free = [pair for pair in pairs if pair[0] not in held_out]
    some = shuffled.sample(free, UNSEEN_PAIRS + round(HELD_OUT_SHARE * len(pairs)))
    return {
        "styles": list(pictures.STYLES),
        "backgrounds": BACKGROUNDS,
        "classes": {
            title: {
                "of": wider,
                "names": {name: sorted(_tags(chosen[name])) for name in members},
            }
            for title, (wider, members) in CLASSES.items()
        },
        "missing": sorted([n, s] for n in names for s in pictures.STYLES if (n, s) not in pairs),
        "unseen_pairs": sorted(some[:UNSEEN_PAIRS]),
        "held_out_names": held_out,
        "held_out_pairs": sorted(some[UNSEEN_PAIRS:]),
    }


def _tags(emoji: pictures.Emoji) -> set[str]:
    return TAGS & set(emoji.tags)


def write(cache: Path, target: Path) -> dict:
    """Render the world, write its facts to `target`; returns what is in it, counted."""
    chosen = selection(cache)
    drawn = pictures.render(cache, chosen)
    found = facts(drawn, chosen)
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return {"names": len(chosen), "pictures": len(drawn.names), "missing": found["missing"]}

"""Prompts of a run as pure functions of seed and step, `{a|b|c}` alternatives included.

The grammar of alternatives is that of the dynamicprompts library: `{a|b}`, nested, with weights
(`{3::a|b}`) and counts (`{2$$a|b|c}`). Everything else it knows (wildcard files, variables,
comments) is off, and braces without alternatives stay as they are: prompts are full of them.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from random import Random

from dynamicprompts.commands import Command
from dynamicprompts.enums import SamplingMethod
from dynamicprompts.parser.config import ParserConfig
from dynamicprompts.parser.parse import parse
from dynamicprompts.sampling_context import SamplingContext
from dynamicprompts.wildcards import WildcardManager
from pyparsing import ParseException

from ...core.errors import PromptError

# Private-use characters: those of `PROTECTED` stand for themselves in other characters' place, the
# last three replace syntax of the library that is not wanted.
PROTECTED = {character: chr(0xF100 + i) for i, character in enumerate("{}|#$!~@:_%\\")}
RESTORE = str.maketrans({stand_in: character for character, stand_in in PROTECTED.items()})
GRAMMAR = ParserConfig(
    variant_start="{",
    variant_end="}",
    wildcard_wrap="\uf200",
    variable_start="\uf201",
    variable_end="\uf202",
    wrap_start="\uf203",
    wrap_end="\uf204",
)
ESCAPED = re.compile(r"\\([{}|])")
COUNT = re.compile(r"\s*(?:\d+(?:-\d*)?|-\d+)\$\$(?:[^{}|$]*\$\$)?")
STAND_INS = re.compile("[\uf100-\uf2ff]")
WEIGHT = re.compile(r"\s*\d+(?:\.\d+)?::")
MAX_DEPTH = 16


class PromptSource:
    """The prompts a run draws; every draw depends on the seed, the step and the index alone."""

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        """Args:
        prompts: at least one prompt; alternatives are expanded at each draw.
        seed: of the run.
        """
        if not prompts:
            raise PromptError("There are no prompts to draw from.")
        self._templates = [protect(prompt) for prompt in prompts]
        self._seed = seed

    def draw(self, step: int, index: int) -> str:
        """The prompt number `index` of a step.

        Over the steps, each index goes through all prompts before it meets one again, every time
        in another order.
        """
        count = len(self._templates)
        round_, position = divmod(step, count)
        rng = _generator(self._seed, "order", round_, index)
        stride, start = _stride(rng, count), rng.randrange(count)
        template = self._templates[(stride * position + start) % count]
        return expand(template, _generator(self._seed, "alternatives", step, index))

    def all_needed(self, steps: int, batch: int, head_start: int = 0) -> list[str]:
        """Every prompt drawn in steps 1..steps with `batch` draws each, once, in order of use.

        Args:
            head_start: draws at step 0, before the first update.
        """
        first = [self.draw(0, index) for index in range(head_start)]
        later = [self.draw(s, index) for s in range(1, steps + 1) for index in range(batch)]
        return list(dict.fromkeys(first + later))


def set_aside(prompts: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """(prompts to train on, prompts to measure on); at most a fifth is set aside, or none.

    Fewer than two would say too little. Of alternatives one is chosen, once.
    """
    count = min(count, len(prompts) // 5)
    if count < 2:
        return list(prompts), []
    chosen = set(_generator(seed, "set aside", 0, 0).sample(range(len(prompts)), count))
    training = [text for number, text in enumerate(prompts) if number not in chosen]
    measured = [
        expand(protect(prompts[number]), _generator(seed, "set aside", number, 1))
        for number in sorted(chosen)
    ]
    known = set(training)
    return training, [text for text in dict.fromkeys(measured) if text and text not in known]


def _generator(seed: int, purpose: str, step: int, index: int) -> Random:
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}/{index}".encode()).digest()
    return Random(int.from_bytes(digest[:8], "little"))


def _stride(rng: Random, count: int) -> int:
    """A step width that visits all of `count` places: one without a common divisor."""
    while True:
        stride = rng.randrange(1, count + 1)
        if math.gcd(stride, count) == 1:
            return stride


def expand(template: str, rng: Random) -> str:
    """One choice of every alternative in a template made by `protect`."""
    if "{" not in template:
        return template.translate(RESTORE)
    context = SamplingContext(
        default_sampling_method=SamplingMethod.RANDOM,
        wildcard_manager=WildcardManager(None),
        parser_config=GRAMMAR,
        rand=rng,
    )
    try:
        text = str(next(iter(context.sample_prompts(_parsed(template), 1))))
    except (ValueError, ParseException) as error:
        raise PromptError(
            f"The alternatives in {template.translate(RESTORE)!r} cannot be read ({error}). Write "
            "{a|b|c}, or {2::a|b} to draw a twice as often."
        ) from error
    return re.sub(r"[ \t]{2,}", " ", text).translate(RESTORE).strip()


@functools.lru_cache(maxsize=4096)
def _parsed(template: str) -> Command:
    return parse(template, parser_config=GRAMMAR)


def protect(prompt: str) -> str:
    """The prompt with only true alternatives left as syntax, all else as stand-ins."""
    text = STAND_INS.sub("", prompt)
    text = ESCAPED.sub(lambda match: PROTECTED[match[1]], text)
    for character in "#%_\\":
        text = text.replace(character, PROTECTED[character])
    groups = _alternative_groups(text)
    if not groups or _depth(groups) > MAX_DEPTH:
        return _literal(text)
    return _protect_all_but(text, groups)


def _alternative_groups(text: str) -> dict[int, int]:
    """End by start of every balanced `{...}` that has a `|` of its own."""
    groups: dict[int, int] = {}
    open_groups: list[tuple[int, bool]] = []
    for place, character in enumerate(text):
        if character == "{":
            open_groups.append((place, False))
        elif character == "|" and open_groups:
            open_groups[-1] = (open_groups[-1][0], True)
        elif character == "}" and open_groups:
            start, has_choice = open_groups.pop()
            if has_choice:
                groups[start] = place
    return groups


def _depth(groups: dict[int, int]) -> int:
    return max(sum(a <= start <= end for a, end in groups.items()) for start in groups)


def _literal(text: str) -> str:
    return text.translate(str.maketrans(PROTECTED))


def _protect_all_but(text: str, groups: dict[int, int]) -> str:
    """Stand-ins for everything but the groups' braces, separators, counts and weights."""
    ends, kept = set(groups.values()), list(text.translate(str.maketrans(PROTECTED)))
    open_groups = 0
    place = 0
    while place < len(text):
        length = 1
        character = text[place]
        if place in groups or place in ends or (character == "|" and open_groups):
            kept[place] = character
            open_groups += (place in groups) - (place in ends)
            length += _syntax_length(text, place)
            kept[place : place + length] = text[place : place + length]
        place += length
    return "".join(kept)


def _syntax_length(text: str, place: int) -> int:
    """Length of a count or weight right behind the brace or separator at `place`."""
    length = 0
    if text[place] == "{" and (count := COUNT.match(text, place + 1)):
        length = len(count[0])
    if text[place] in "{|" and (weight := WEIGHT.match(text, place + 1 + length)):
        length += len(weight[0])
    return length

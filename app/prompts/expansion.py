"""Prompts of a run as pure functions of seed and step, `{a|b|c}` alternatives included.

Alternatives may be nested and may be empty:

    {red|blue}           one of them
    {3::red|blue}        red three times as often
    {2$$red|blue|green}  two different ones in any order, with a comma between
    {1-2$$ and $$a|b|c}  one or two, " and " between; also {2-$$...} and {-2$$...}

Braces without a `|` of their own or without their partner are text, as prompts are full of them;
`\\{`, `\\|` and `\\}` always are. Nothing else has a meaning here.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ...core.errors import PromptError

# Private-use characters stand for others while a prompt is read, so prompts hold none: for escaped
# ones, and for those of a text that are not to be taken for the same ones in a separator.
STAND_INS = re.compile("[\uf100-\uf2ff]")
ESCAPED = re.compile(r"\\([{}|])")
STAND_IN = {character: chr(0xF100 + i) for i, character in enumerate("{}|!~@:")}
OWN = str.maketrans({character: STAND_IN[character] for character in "!~@:"})
RESTORE = str.maketrans({stand_in: character for character, stand_in in STAND_IN.items()})
BLANKS = " \t\r\n"
COUNT = re.compile(
    rf"[{BLANKS}]*(?:(?P<exact>[0-9]+)|(?P<least>[0-9]+)-(?P<most>[0-9]+)?|-(?P<up_to>[0-9]+))"
    r"\$\$(?:(?P<separator>[^{}|$]*)\$\$)?"
)
WEIGHT = re.compile(rf"[{BLANKS}]*(?P<weight>[0-9]+(?:\.[0-9]+)?)::")
MAX_DEPTH = 16
MAX_SHOWN = 300
MAX_DIGITS = 1000


class PromptSource:
    """The prompts a run draws; every draw depends on the seed, the step and the index alone."""

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        """Args:
        prompts: at least one prompt; alternatives are expanded at each draw.
        seed: of the run.
        """
        if not prompts:
            raise PromptError("There are no prompts to draw from.")
        self._prompts = list(prompts)
        self._seed = seed

    def draw(self, step: int, index: int) -> str:
        """The prompt number `index` of a step.

        Over the steps, each index goes through all prompts before it meets one again, every time
        in another order.
        """
        count = len(self._prompts)
        round_, position = divmod(step, count)
        rng = _generator(self._seed, "order", round_, index)
        stride, start = _stride(rng, count), rng.randrange(count)
        prompt = self._prompts[(stride * position + start) % count]
        return expand(prompt, _generator(self._seed, "alternatives", step, index))

    def all_needed(self, steps: int, batch: int, head_start: int = 0) -> list[str]:
        """Every prompt drawn in steps 1..steps with `batch` draws each, once, in order of use.

        Args:
            head_start: draws at step 0, before the first update.
        """
        first = [self.draw(0, index) for index in range(head_start)]
        later = [self.draw(s, index) for s in range(1, steps + 1) for index in range(batch)]
        return list(dict.fromkeys(first + later))


def hold_out(prompts: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """(prompts to train on, prompts to measure on); at most a fifth is held out, or none.

    Fewer than two would say too little. Of alternatives one is chosen, once.
    """
    count = min(count, len(prompts) // 5)
    if count < 2:
        return list(prompts), []
    chosen = set(_generator(seed, "set aside", 0, 0).sample(range(len(prompts)), count))
    training = [text for number, text in enumerate(prompts) if number not in chosen]
    measured = [
        expand(prompts[number], _generator(seed, "set aside", number, 1))
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


# Alternatives


@dataclass(frozen=True)
class Choice:
    """`{...}`: between `least` and `most` different options, joined by the separator."""

    options: tuple[Template, ...]
    weights: tuple[float, ...]
    least: int
    most: int
    separator: str


Template = str | Choice | tuple["str | Choice", ...]
"""A text, a choice, or several of these one after another."""


def expand(prompt: str, rng: Random) -> str:
    """The prompt with one choice made of every alternative.

    Raises:
        PromptError: its alternatives make no sense, or are nested more than 16 deep.
    """
    template = _parsed(prompt)
    if isinstance(template, str):
        return template.translate(RESTORE)
    try:
        text = _draw(template, rng)
    except ValueError as error:  # of weights that are all 0
        raise _unreadable(prompt, str(error)) from error
    return re.sub(r" {2,}", " ", text).translate(RESTORE).strip()


def check_alternatives(prompt: str) -> None:
    """Raise PromptError for alternatives of which no choice, or not every one, can be made."""
    waiting = [_parsed(prompt)]
    while waiting:
        template = waiting.pop()
        if isinstance(template, tuple):
            waiting += template
        elif isinstance(template, Choice):
            waiting += template.options
            possible = sum(weight > 0 for weight in template.weights)
            if not math.isfinite(sum(template.weights)):
                raise _unreadable(prompt, "its weights are too large")
            if possible < min(template.most, len(template.options)):
                raise _unreadable(prompt, f"of its options {possible} weigh more than 0")


def _unreadable(prompt: str, reason: str) -> PromptError:
    shown = prompt if len(prompt) <= MAX_SHOWN else f"{prompt[:MAX_SHOWN]}…"
    return PromptError(
        f"The alternatives in {shown!r} cannot be read ({reason}). Write "
        "{a|b|c}, or {2::a|b} to draw a twice as often."
    )


def _draw(template: Template, rng: Random) -> str:
    """A text of the template.

    What is asked of `rng`, and in which order, decides what earlier seeds give: it stays as it is.
    """
    if isinstance(template, str):
        return template
    if isinstance(template, tuple):
        return "".join(_draw(part, rng) for part in template)
    count = len(template.options)
    number = rng.randint(min(template.least, count), min(template.most, count))
    options, weights, chosen = list(template.options), list(template.weights), []
    for _ in range(number):
        chosen.append(rng.choices(options, weights=weights)[0])
        place = options.index(chosen[-1])
        del options[place]
        weights.remove(weights[place])  # the first that is equal, not always that of this option
    texts = [_draw(option, rng) for option in chosen]
    if len(texts) == 1:
        return texts[0]
    separator = template.separator  # none is left at the ends, where an option is empty
    return separator.join(texts).removeprefix(separator).removesuffix(separator)


@functools.lru_cache(maxsize=4096)
def _parsed(prompt: str) -> Template:
    text = STAND_INS.sub("", prompt)
    text = ESCAPED.sub(lambda match: STAND_IN[match[1]], text)
    if not _ends(text):
        return text
    return _Parser(prompt, text.expandtabs()).read()


def _ends(text: str) -> dict[int, int]:
    """End by start of every balanced `{...}` that has a `|` of its own."""
    ends: dict[int, int] = {}
    open_braces: list[tuple[int, bool]] = []
    for place, character in enumerate(text):
        if character == "{":
            open_braces.append((place, False))
        elif character == "|" and open_braces:
            open_braces[-1] = (open_braces[-1][0], True)
        elif character == "}" and open_braces:
            start, has_choice = open_braces.pop()
            if has_choice:
                ends[start] = place
    return ends


class _Parser:
    """Reads a text whose choices begin and end at known places, from left to right."""

    def __init__(self, prompt: str, text: str) -> None:
        self._prompt, self._text, self._ends = prompt, text, _ends(text)
        self._place = 0

    def read(self) -> Template:
        """The whole text."""
        return self._sequence(len(self._text), 0)

    def _sequence(self, end: int, depth: int) -> Template:
        """Texts and choices up to `end` or, inside a choice, to its next `|`."""
        parts: list[str | Choice] = []
        while self._place < end and not (depth and self._text[self._place] == "|"):
            is_choice = self._place in self._ends
            parts.append(self._choice(depth + 1) if is_choice else self._plain(end, depth))
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _plain(self, end: int, depth: int) -> str:
        """The text up to the next choice, or to where `_sequence` ends."""
        begin = self._place
        while (
            self._place < end
            and self._place not in self._ends
            and not (depth and self._text[self._place] == "|")
        ):
            self._place += 1
        return self._text[begin : self._place].translate(OWN)

    def _choice(self, depth: int) -> Choice:
        if depth > MAX_DEPTH:
            raise _unreadable(self._prompt, f"they are nested more than {MAX_DEPTH} deep")
        end = self._ends[self._place]
        self._place += 1
        count = self._matched(COUNT)
        options: list[Template] = []
        weights: list[float] = []
        while True:
            weight = self._matched(WEIGHT)
            if weight is None:
                while self._text[self._place] in BLANKS:
                    self._place += 1
            weights.append(float(weight["weight"]) if weight else 1.0)
            options.append(self._sequence(end, depth))
            self._place += 1
            if self._place > end:
                break
        least, most, separator = self._bounds(count, len(options))
        return Choice(tuple(options), tuple(weights), least, most, separator)

    def _bounds(self, count: re.Match[str] | None, options: int) -> tuple[int, int, str]:
        """(least, most, separator) of what a count says; one option where there is none."""
        if count is None:
            return 1, 1, ","
        separator = count["separator"]
        if separator == "":
            raise _unreadable(self._prompt, "nothing stands between $$ and $$")
        asked = count["exact"] or count["least"] or "1"
        limit = count["exact"] or count["most"] or count["up_to"] or str(options)
        if max(len(asked), len(limit)) > MAX_DIGITS:
            raise _unreadable(self._prompt, f"a count has more than {MAX_DIGITS} digits")
        least, most = int(asked), int(limit)
        return min(least, most), max(least, most), "," if separator is None else separator

    def _matched(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._place)
        if match:
            self._place = match.end()
        return match

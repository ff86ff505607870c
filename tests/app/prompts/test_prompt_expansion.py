"""Drawn prompts depend on seed, step and index alone, and syntax of other tools passes through."""

import random
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from dpdmd_studio.app.prompts import reading as prompts_module
from dpdmd_studio.app.prompts.expansion import PromptSource, expand
from dpdmd_studio.app.prompts.reading import parse_prompts, read_prompts
from dpdmd_studio.core.errors import PromptError

# What these prompts give for the seeds 1, 2 and 5, drawn by dynamicprompts 0.31.0, the library that
# read alternatives before.
DRAWN = {
    "a {red|blue|green} cat": ["a blue cat", "a red cat", "a green cat"],
    "{3::red|blue}": ["red", "red", "red"],
    "{0.5::red|1.5::blue|green}": ["blue", "red", "green"],
    "{2$$a|b|c}": ["b,c", "a,b", "c,b"],
    "{2$$ and $$a|b|c}": ["b and c", "a and b", "c and b"],
    "{1-2$$, $$a|b|c|d}": ["c", "a", "c, d"],
    "{-2$$a|b|c}": ["b", "a", "c,b"],
    "{2-$$a|b|c}": ["b,c", "a,b", "c,b,a"],
    "{0-1$$a|b}": ["", "", "b"],
    "{9$$a|b|c}": ["b,c,a", "a,b,c", "c,b,a"],
    "{2-1$$a|b|c}": ["b", "a", "c,b"],
    "{2$$a|a|3::b|a}": ["b,a", "a,b", "b,a"],
    "{2$$2::a|b|2::c|d|2::e}": ["c,e", "a,c", "d,e"],
    "{a {b|c} d|e {f|{g|h}}}": ["e f", "a c d", "e h"],
    "{2$$; $${a|b}|{c|d} x|e}": ["c x; e", "b; c x", "e; d x"],
    "{a||b|} end": ["b end", "a end", "b end"],
    "{|} {|}": ["", "", ""],
    "{ a | b } {c |d}": ["b c", "a d", "b d"],
    "{2:: a|3.25::b|0::c}": ["b", "a", "b"],
    "{3$$, $$|a|b|}": ["b, , a", "b, a", "b,"],
    "{2$$:$$a:|:b|c}": [":b:c", "a:::b", "c::b"],
    "{2$$ $$a|b|c} {x}": ["b c {x}", "a b {x}", "c b {x}"],
    "{~a|!b|@c}": ["!b", "~a", "@c"],
    "{(a:1.2)|#1 $5 100%|__x__}": ["#1 $5 100%", "(a:1.2)", "__x__"],
    "\\{a\\|b\\} {c\\|d|e}": ["{a|b} e", "{a|b} c|d", "{a|b} e"],
    "{x|{lit} y} {z}": ["{lit} y {z}", "x {z}", "{lit} y {z}"],
    "{日本|été|naïve} 猫": ["été 猫", "日本 猫", "naïve 猫"],
    "a\t{b|c}\t\td": ["a c d", "a b d", "a c d"],
    "{0$$a|b}x": ["x", "x", "x"],
    "{1-3$$ - $${2::a|b} c|{1-2$$d|e}|f|g}": ["f", "b c", "e - f - g"],
    "1girl, {blonde|black|red} hair, {1-2$$, $$smile|hat|{sitting|standing}}": [
        "1girl, black hair, smile",
        "1girl, blonde hair, sitting, hat",
        "1girl, red hair, standing",
    ],
}


def outcomes(prompt, tries=40):
    return {expand(prompt, Random(i)) for i in range(tries)}


@pytest.mark.parametrize("prompt", DRAWN)
def test_a_seed_gives_what_it_has_always_given(prompt):
    assert [expand(prompt, Random(seed)) for seed in (1, 2, 5)] == DRAWN[prompt]


@pytest.mark.parametrize(
    "prompt",
    [
        "{{best quality}}, 1girl",
        "a {cat",
        "a cat} b",
        "{a|b",
        ":} {| >_<",
        "a | b, [c|d]",
        "__wild__ #1 $5 100% ${x} %{a$$b}",
        r"painting \(medium\), (a:1.2), ((b)), [c:d:0.5], BREAK x",
        "{x}, {y}",
    ],
)
def test_text_without_alternatives_stays_as_it_is(prompt):
    assert outcomes(prompt) == {prompt}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {red|blue} cat", {"a red cat", "a blue cat"}),
        ("{a {b|c} d|e}", {"a b d", "a c d", "e"}),
        ("{a|} b", {"a b", "b"}),
        ("{(a:1.2)|#1 $5 100%|@_@|__x__}", {"(a:1.2)", "#1 $5 100%", "@_@", "__x__"}),
        ("{~a|!b}", {"~a", "!b"}),
        (r"\{a\|b\} {c\|d|e}", {"{a|b} c|d", "{a|b} e"}),
        ("{x|{literal} y} {z}", {"x {z}", "{literal} y {z}"}),
        ("{2$$a|b}", {"a,b", "b,a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{日本|été}", {"日本", "été"}),
        ("{-$$a|b}", {"-$$a", "b"}),
        ("{a|b} // c", {"a // c", "b // c"}),
        ("{2$$ été $$a|b}", {"a été b", "b été a"}),
    ],
)
def test_alternatives_give_each_of_their_choices(prompt, expected):
    assert outcomes(prompt) == expected


def test_weights_shift_the_odds():
    counts = Counter(expand("{9::a|1::b}", Random(i)) for i in range(500))
    assert 400 < counts["a"] < 490


def test_any_text_expands_and_stays_within_its_characters():
    rng = random.Random(0)
    for _ in range(400):
        text = "".join(rng.choice("{{}}||ab $$::12-#\\@~,_") for _ in range(rng.randint(1, 30)))
        drawn = expand(text, Random(1))
        assert set(drawn) <= set(text) | set(", ")


def test_draws_are_a_pure_function_of_seed_step_and_index():
    prompts = ["a {red|blue|green} cat", "a {dog|bird}", "x", "y"]
    first, second = PromptSource(prompts, 5), PromptSource(prompts, 5)
    forward = [[first.draw(step, i) for i in range(3)] for step in range(20)]
    backward = [[second.draw(step, i) for i in (2, 1, 0)][::-1] for step in reversed(range(20))]
    assert forward == backward[::-1]
    other = PromptSource(prompts, 6)
    assert forward != [[other.draw(step, i) for i in range(3)] for step in range(20)]


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_every_prompt_comes_once_before_any_comes_again(count):
    source = PromptSource([f"p{i}" for i in range(count)], 3)
    rounds = [[source.draw(r * count + i, 0) for i in range(count)] for r in range(4)]
    assert all(sorted(drawn) == sorted(f"p{i}" for i in range(count)) for drawn in rounds)


def test_all_needed_are_exactly_those_the_run_draws():
    source = PromptSource([f"p{i} {{a|b|c}}" for i in range(50)], 1)
    needed = source.all_needed(10, 2, head_start=3)
    drawn = {source.draw(step, i) for step in range(1, 11) for i in range(2)}
    drawn |= {source.draw(0, i) for i in range(3)}
    assert set(needed) == drawn
    assert len(needed) == len(set(needed))


@pytest.mark.parametrize("prompt", ["a {0::x|0::y} cat", "{2$$$$a|b}"])
def test_alternatives_that_make_no_sense_are_named(prompt):
    with pytest.raises(PromptError, match="cannot be read"):
        expand(prompt, Random(0))


def nested(depth):
    return "{" * depth + "a" + "|b}" * depth


def test_nesting_has_a_depth_that_is_enough():
    assert outcomes(nested(16)) <= {"a", "b"}
    for depth in (17, 20_000):
        with pytest.raises(PromptError, match="more than 16 deep") as caught:
            expand(nested(depth), Random(0))
        assert len(str(caught.value)) < 500
    assert outcomes("{" * 20_000) == {"{" * 20_000}


def test_no_prompts_is_an_error():
    with pytest.raises(PromptError):
        PromptSource([], 0)


@pytest.mark.parametrize("name", ["photo", "illustration", "tags"])
def test_starter_templates_leave_no_syntax_behind(name):
    prompts = read_prompts(Path(prompts_module.__file__).parent / "templates" / f"{name}.txt")
    drawn = PromptSource(prompts.prompts, 0).all_needed(2 * len(prompts.prompts), 1)
    assert not [prompt for prompt in drawn if set(prompt) & set("{}|")]
    assert len(drawn) > len(prompts.prompts)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("{1" + "0" * 400 + "::a|b}", "its weights are too large"),
        ("{" + "9" * 5000 + "$$a|b}", "a count has more than 1000 digits"),
        ("{x|{1-" + "9" * 5000 + "$$a|b}}", "a count has more than 1000 digits"),
        ("a {0::x|0::y} cat", "0 weigh more than 0"),
        ("{2$$a|0::b}", "1 weigh more than 0"),
    ],
)
def test_alternatives_are_tried_when_prompts_are_read(prompt, reason):
    with pytest.raises(PromptError, match=reason) as caught:
        parse_prompts(f"fine {{a|b}}\n{prompt}", "p.txt")
    assert len(str(caught.value)) < 600
    with pytest.raises(PromptError, match="cannot be read"):
        outcomes(prompt)

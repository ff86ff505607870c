"""The emoji world: captions that leave things open, and what is kept from whom."""

from __future__ import annotations

import random

import pytest
from dpdmd_studio.app.library.choices import starter
from dpdmd_studio.trainer.text.tokenizers import clip_ids
from dpdmd_studio.trainer.toys.emoji.captions import (
    Said,
    Scene,
    caption_sample,
    random_said,
    random_scene,
    world,
)
from dpdmd_studio.trainer.toys.emoji.counts import OPEN, distinct
from dpdmd_studio.trainer.toys.emoji.judging import Verdict
from emoji.text import token_ids


def test_the_world_is_as_wide_as_its_card_says():
    here = world()
    assert 100 <= len(here.names) <= 250 and len(here.styles) == 4
    assert min(map(len, here.classes.values())) >= 10
    share = len(here.held_out_names) / len(here.names)
    assert share == pytest.approx(0.15, abs=0.01)
    pairs = len(here.names) * len(here.styles)
    assert len(here.held_out_pairs) / pairs == pytest.approx(0.15, abs=0.01)
    assert not here.unseen_pairs & here.held_out_pairs
    assert not {name for name, _ in here.unseen_pairs | here.held_out_pairs} & here.held_out_names


def test_every_caption_is_read_back_as_it_was_meant():
    source, known = random.Random(0), set(token_ids())
    for _ in range(3000):
        said = random_said(random_scene(source), source)
        caption = said.caption(source.randrange(3))
        assert world().parse(caption) == said, caption
        assert known.issuperset(clip_ids(caption)), caption
        assert len(clip_ids(caption)) <= 14, caption  # begin and end stand beside them


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("owl 3d", Said("owl", style="3d")),
        ("A RED APPLE on blue!", Said("red apple", background="blue")),
        ("red car on blue", Said("car", background="blue")),
        ("something else", Said("")),
        ("", Said("")),
    ],
)
def test_prompts_as_people_type_them(text, said):
    assert world().parse(text) == said


def test_an_open_noun_has_many_right_answers():
    nouns = world().nouns
    assert nouns["owl"] == {"owl"} and "owl" in nouns["bird"] < nouns["animal"]
    assert "automobile" in nouns["car"] and "dog face" in nouns["pet"]
    assert nouns["fish"] == {"fish"}  # a name is itself, whatever tags say


def test_no_scene_shows_what_the_teacher_may_not_see():
    source = random.Random(1)
    shown = {(s.name, s.style) for s in (random_scene(source) for _ in range(6000))}
    assert not shown & world().unseen_pairs
    assert len(shown) == len(world().names) * 4 - len(world().unseen_pairs)


def test_held_out_captions_are_those_of_held_out_names_and_pairs_and_some_open_ones():
    here = world()
    name, (other, style) = min(here.held_out_names), min(here.held_out_pairs)
    assert here.is_held_out(Said(name)) and here.is_held_out(Said(other, style))
    assert not here.is_held_out(Said(other))
    assert not any(here.is_held_out(Said(noun)) for noun in here.open_nouns)
    opened = [Said(n, s, b) for n in here.open_nouns for s in here.styles for b in here.backgrounds]
    share = sum(map(here.is_held_out, opened)) / len(opened)
    assert share == pytest.approx(0.15, abs=0.05)


def test_the_two_sides_of_captions_never_meet_and_are_in_turn_by_name_and_by_class():
    here, held, trained = world(), caption_sample(True, 60, 0), caption_sample(False, 400, 0)
    assert not set(held) & set(trained) and len(set(held)) == 60
    for texts, side in ((held, True), (trained, False)):
        said = [here.parse(text) for text in texts]
        assert {here.is_held_out(each) for each in said} == {side}
        assert all((each.noun in here.class_of) == (n % 2 == 0) for n, each in enumerate(said))
    assert all(len(here.nouns[here.parse(text).noun]) >= OPEN for text in held[1::2])
    assert caption_sample(True, 30, 0) == held[:30] != caption_sample(True, 30, 1)
    assert starter("emoji").splitlines() == trained


def test_words_for_size_and_place_are_said_only_of_what_plainly_is_so():
    assert Scene("owl", "3d", "blue", 0.7, 0.9, 0.1).place == "right"
    assert Scene("owl", "3d", "blue", 0.7, 0.2, -0.8).place == "top"
    assert Scene("owl", "3d", "blue", 0.7, 0.3, 0.3).place == ""
    large = Scene("owl", "3d", "blue", 1.0, 0.9, 0.1)
    assert (large.size, large.place) == ("large", "")


def test_distinct_is_the_number_of_evenly_drawn_things():
    names = sorted(world().classes["bird"])
    even = [Verdict(names[i % 8], "3d", 1.0) for i in range(64)]
    wanted = world().nouns["bird"]
    assert distinct(even, wanted) == pytest.approx(8, rel=0.15)  # without replacement a little more
    assert distinct([even[0]] * 64, wanted) == 1
    wrong = [Verdict("pear", "3d", 1.0)] * 40
    assert distinct([*even[:24], *wrong], wanted) == 1  # too few are right
    assert distinct([Verdict("", "", 0.2)] * 64, wanted) == 1

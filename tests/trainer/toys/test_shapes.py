"""Shapes pictures measure back to what was drawn, and nothing else passes for one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import shapes_scenes
from dpdmd_studio.app.library.choices import starter
from dpdmd_studio.trainer.toys import shapes
from dpdmd_studio.trainer.toys.measures import (
    Measurement,
    adherence,
    entropy,
    measure,
    unsaid_entropy,
)
from PIL import Image, ImageFilter


def drawn(count: int, seed: int) -> tuple[list[shapes.Scene], np.ndarray]:
    generator = np.random.default_rng(seed)
    scenes = shapes_scenes.random_scenes(count, generator)
    return scenes, shapes_scenes.draw(scenes, generator)


def one(seed: int = 3, **attributes: str) -> np.ndarray:
    usual = {
        "shape": "circle", "colour": "red", "size": "medium",
        "position": "centre", "background": "white",
    }  # fmt: skip
    scene = shapes.Scene(**{**usual, **attributes})
    return shapes_scenes.draw([scene], np.random.default_rng(seed))[0]


def share_read_right(scenes: list[shapes.Scene], pictures: np.ndarray) -> float:
    right = [
        found.valid and all(getattr(found, k) == v for k, v in dataclasses.asdict(scene).items())
        for scene, found in zip(scenes, shapes_scenes.measure_all(pictures), strict=True)
    ]
    return float(np.mean(right))


def test_drawn_pictures_measure_back_to_their_scenes() -> None:
    assert share_read_right(*drawn(1000, seed=11)) >= 0.995


def test_the_measure_bears_mild_blur_and_noise() -> None:
    scenes, pictures = drawn(300, seed=12)
    noise = np.random.default_rng(0).normal(0, 4, pictures.shape)
    blurred = [Image.fromarray(p).filter(ImageFilter.GaussianBlur(0.6)) for p in pictures]
    spoilt = np.clip(np.stack([np.asarray(b) for b in blurred]) + noise, 0, 255).astype(np.uint8)
    assert share_read_right(scenes, spoilt) >= 0.97


def test_drawing_is_a_function_of_the_seed() -> None:
    np.testing.assert_array_equal(drawn(20, seed=1)[1], drawn(20, seed=1)[1])
    assert not np.array_equal(drawn(20, seed=1)[1], drawn(20, seed=2)[1])


def two_shapes() -> np.ndarray:
    picture = one(position="left", size="small")
    picture[:, 32:] = one(position="right", size="small")[:, 32:]
    return picture


def two_colours() -> np.ndarray:
    picture = one(size="large", colour="red")
    picture[:32] = one(size="large", colour="blue")[:32]
    return picture


def two_backgrounds() -> np.ndarray:
    picture = one(background="white")
    picture[:, :24] = one(background="pink")[:, :24]
    return picture


def broken() -> np.ndarray:
    picture = one(size="large")
    picture[:, 30:34] = picture[0, 0]
    return picture


def cut_open() -> np.ndarray:
    picture = one(size="medium")
    picture[32:, 32:] = picture[0, 0]
    return picture


def ring() -> np.ndarray:
    picture = one(size="large")
    picture[25:39, 25:39] = picture[0, 0]
    return picture


def frame() -> np.ndarray:
    picture = one()
    picture[:3] = picture[:, :3] = 0
    return picture


def empty() -> np.ndarray:
    return np.full((64, 64, 3), 240, dtype=np.uint8)


def grain() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


def stripe() -> np.ndarray:
    picture = empty()
    picture[28:36, 4:60] = shapes.COLOURS["blue"]
    return picture


def ellipse() -> np.ndarray:
    picture = Image.fromarray(one(size="large")).resize((64, 32))
    canvas = Image.fromarray(empty())
    canvas.paste(picture, (0, 16))
    return np.asarray(canvas)


def between_places() -> np.ndarray:
    return np.roll(one(size="small"), (11, 11), axis=(0, 1))


def wrong_colour() -> np.ndarray:
    picture = empty()
    picture[22:42, 22:42] = (0, 255, 255)
    return picture


@pytest.mark.parametrize(
    "spoilt",
    [
        two_shapes, two_colours, two_backgrounds, broken, cut_open, ring, frame, empty, grain,
        stripe, ellipse, between_places, wrong_colour,
    ],
)  # fmt: skip
def test_what_is_no_clean_shape_is_refused_with_a_reason(spoilt) -> None:
    found = measure(spoilt())
    assert not found.valid
    assert found.reason


def test_a_picture_of_another_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        measure(np.zeros((64, 64, 3)))


def test_captions_say_what_was_chosen_and_nothing_else() -> None:
    generator = np.random.default_rng(4)
    for scene in shapes_scenes.random_scenes(500, generator):
        said = shapes_scenes.random_said(generator)
        for wording in (0, 1):
            text = shapes.caption(scene, said, wording)
            assert shapes.parse_caption(text) == {name: getattr(scene, name) for name in said}


def test_captions_read_like_english() -> None:
    scene = shapes.Scene("circle", "orange", "small", "left", "white")
    assert shapes.caption(scene, ()) == "a shape"
    assert shapes.caption(scene, ("colour",)) == "an orange shape"
    everything = "a small orange circle on the left, white background"
    assert shapes.caption(scene, tuple(shapes.ATTRIBUTES)) == everything
    assert shapes.parse_caption("") == {}


def test_training_and_held_out_captions_are_disjoint_and_together_all() -> None:
    train, held_out = shapes.all_captions(False), shapes.all_captions(True)
    assert not set(train) & set(held_out)
    together = np.prod([1 + len(values) for values in shapes.ATTRIBUTES.values()])
    assert len(set(train) | set(held_out)) == len(train) + len(held_out) == together
    assert 0.15 < len(held_out) / together < 0.25
    for values, name in zip(shapes.ATTRIBUTES.values(), shapes.ATTRIBUTES, strict=True):
        for side in (train, held_out):
            assert {shapes.parse_caption(t).get(name) for t in side} == {None, *values}


def test_caption_samples_stay_on_their_side_and_are_spread() -> None:
    sample = shapes.caption_sample(True, 90, seed=5)
    assert set(sample) <= set(shapes.all_captions(True))
    assert sample == shapes.caption_sample(True, 90, seed=5)
    lengths = [len(shapes.parse_caption(text)) for text in sample]
    assert [lengths.count(n) for n in (3, 4, 5)] == [30, 30, 30]


def test_adherence_asks_for_validity_and_for_everything_said() -> None:
    found = Measurement(True, "circle", "red", "small", "left", "white")
    assert adherence("a shape", found)
    assert adherence("a small red circle on the left, white background", found)
    assert not adherence("a large red circle", found)
    assert not adherence("a shape", dataclasses.replace(found, valid=False))


def test_entropy_is_one_when_even_and_zero_when_always_the_same() -> None:
    assert entropy(list(shapes.SHAPES) * 5, "shape") == pytest.approx(1.0)
    assert entropy(["circle"] * 5, "shape") == 0.0
    assert entropy(["circle", "cross"] * 5, "shape") == pytest.approx(0.5)
    assert entropy([], "shape") == 0.0


def test_unsaid_entropy_counts_only_what_captions_leave_open() -> None:
    circle = Measurement(True, "circle", "red", "small", "left", "white")
    cross = dataclasses.replace(circle, shape="cross")
    void = dataclasses.replace(circle, shape="square", valid=False)
    pairs = [("a shape", circle), ("a shape", cross), ("a square", circle), ("a shape", void)]
    found = unsaid_entropy(pairs)
    assert found["shape"] == pytest.approx(0.5)
    assert found["colour"] == 0.0


def test_the_starter_prompts_are_captions_to_train_on() -> None:
    """Else: python tools/make_starter_prompts.py."""
    texts = starter("shapes").splitlines()
    assert texts == shapes_scenes.starter_captions(400) and len(set(texts)) == 400
    assert not any(shapes.is_held_out(shapes.parse_caption(text)) for text in texts)

"""A run chooses by what people see: blur, noise, lost variety, and hardly by brightness."""

from __future__ import annotations

import numpy as np
import pytest
from dpdmd_studio.trainer.evaluation import perception
from dpdmd_studio.trainer.evaluation.perception import Perception, exposed
from PIL import Image, ImageFilter
from shapes_scenes import draw, random_scenes


@pytest.fixture(scope="module")
def drawn():
    """Teacher's images, and a student's, of two prompts and six seeds."""
    source = np.random.default_rng(0)
    images = list(draw(random_scenes(24, source), source))
    return [images[:6], images[6:12]], [images[12:18], images[18:]]


@pytest.fixture(scope="module")
def seen(drawn):
    return Perception(drawn[0])


def each(rows, change):
    return [[change(image) for image in row] for row in rows]


def blurred(image):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1)))


def noised(image):
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def test_blur_noise_and_alike_seeds_are_far_and_brightness_is_not(drawn, seen):
    ours = drawn[1]
    plain = seen(ours)["perceptual_distance"]
    brighter = seen(each(ours, lambda image: exposed(image, 1.08)))["perceptual_distance"]
    alike = [[row[0]] * len(row) for row in ours]
    worse = [each(ours, blurred), each(ours, noised), alike]
    for rows in worse:
        assert seen(rows)["perceptual_distance"] > plain + 5 * abs(brighter - plain)


def test_the_teacher_itself_has_no_drift_and_is_nearest(drawn, seen):
    found = seen(drawn[0])
    assert found["brightness"] == found["saturation"] == [1.0, 1.0]
    assert found["perceptual_distance"] < seen(drawn[1])["perceptual_distance"]
    assert found["perceptual_distance"] == pytest.approx(np.mean(found["perceptual_distances"]))


def test_drift_is_told_by_prompt_and_of_grey_images_not_exaggerated(monkeypatch):
    monkeypatch.setattr(perception, "perceptual_features", lambda: None)
    red, grey, warm = (
        np.full((8, 8, 3), c, np.uint8) for c in ((100, 50, 50), 100, (102, 100, 99))
    )
    found = Perception([[red], [grey]])([[exposed(red, 1.5)], [warm]])
    assert found.keys() == {"brightness", "saturation"}  # without the network that is all
    assert found["brightness"] == pytest.approx([1.45, 1.0], abs=0.02)
    assert found["saturation"][0] == pytest.approx(1.45, abs=0.02)
    assert found["saturation"][1] < 1.7

"""The feature network is the published one, and sees what the layout feature cannot."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.trainer.evaluation import efficientnet
from dpdmd_studio.trainer.evaluation.features import (
    ImageFeatures,
    imagenet_features,
    layout_features,
)
from dpdmd_studio.trainer.evaluation.measures import feature_measures
from dpdmd_studio.trainer.toys.shapes import Scene
from dpdmd_studio.trainer.toys.worlds import image_measures
from PIL import Image, ImageFilter
from shapes_scenes import draw


@pytest.fixture(scope="module")
def features():
    return imagenet_features(torch.device("cpu"))


def stripes(period: int) -> np.ndarray:
    x = np.arange(64) // period % 2 * 200 + 20
    return np.repeat(np.broadcast_to(x, (64, 64))[..., None], 3, axis=2).astype(np.uint8)


def test_vectors_are_of_unit_length_and_the_same_again(features):
    images = [stripes(4), stripes(8)]
    found = features.of(images)
    assert found.shape == (2, efficientnet.WIDTH)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(features.of(images[1:])[0], found[1], rtol=1e-4, atol=1e-5)


def test_it_sees_blur_far_more_than_brightness_where_the_layout_does_not(features):
    scene = Scene("circle", "green", "medium", "left", "grey")
    image = draw([scene], np.random.default_rng(0))[0]
    blurred = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))
    darker = (image * 0.9).astype(np.uint8)

    def distance(kind, other):
        one, two = kind.of([image, other])
        return 1 - float(one @ two)

    assert distance(features, blurred) > 10 * distance(features, darker)
    layout = layout_features()
    assert distance(layout, blurred) < distance(layout, darker)


def test_without_its_package_the_error_says_what_to_do(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        efficientnet, "find_spec", lambda name: None if "efficientnet" in name else found(name)
    )
    with pytest.raises(SettingsError, match=r"python install\.py"):
        efficientnet.load()


def test_a_damaged_file_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / efficientnet.WEIGHTS).write_bytes(b"nothing")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: spec)
    with pytest.raises(SettingsError, match="cannot be read"):
        efficientnet.load()


def test_reports_do_without_the_network_and_say_so(monkeypatch, caplog):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with caplog.at_level("INFO", logger="dpdmd_studio.evaluation"):
        measures = image_measures()
    assert set(measures.labels) == {"sample_diversity", "teacher_distance"}
    assert "python install.py" in caplog.text


def test_the_teachers_vectors_are_made_once_for_all_arms():
    asked: list[int] = []

    def of(images):
        asked.append(len(images))
        return torch.eye(4)[: len(images)]

    measured = feature_measures(ImageFeatures("counting", of))
    teacher = [[stripes(4)] * 3]
    measured(["a"], teacher, teacher)
    measured(["a"], [[stripes(8)] * 3], teacher)
    assert len(asked) == 2
    measured(["a"], [[stripes(8)] * 3], [[stripes(2)] * 3])  # another teacher is another one
    assert len(asked) == 4

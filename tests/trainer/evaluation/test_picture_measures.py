"""Diversity, distance and counts against values that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.core.images.diversity import sample_diversity
from dpdmd_studio.trainer.evaluation.features import folder_features, layout_features
from dpdmd_studio.trainer.evaluation.measures import energy_distance, feature_measures
from dpdmd_studio.trainer.toys.counts import count_shapes, seeds_apart, shapes_measures
from dpdmd_studio.trainer.toys.measures import Measurement
from dpdmd_studio.trainer.toys.shapes import SHAPES, Scene
from shapes_scenes import draw
from torch.nn import functional

CAPTION = "a small red circle in the centre, white background"


def pictures(count: int, seed: int = 0, side: int = 64) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return list(generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_sample_diversity_is_equation_9():
    rows = unit(9, 5)
    pairs = [float(rows[i] @ rows[j]) for i in range(9) for j in range(i + 1, 9)]
    assert sample_diversity(rows) == pytest.approx(1 - 2 / (9 * 8) * sum(pairs), abs=1e-6)
    assert sample_diversity(torch.eye(4)) == pytest.approx(1.0)
    assert sample_diversity(unit(1, 5).repeat(3, 1)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        sample_diversity(unit(1, 5))


def test_energy_distance_is_zero_in_the_mean_for_one_distribution_and_grows_with_a_shift():
    same = [energy_distance(unit(9, 6, seed=i), unit(9, 6, seed=1000 + i)) for i in range(300)]
    error = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 3 * error and min(same) < 0
    shift = torch.tensor([1.0, 0, 0, 0, 0, 0])
    near, far = (
        np.mean([
            energy_distance(unit(9, 6, seed=i), functional.normalize(
                unit(9, 6, seed=1000 + i) + strength * shift, dim=-1))
            for i in range(100)
        ])
        for strength in (0.5, 2.0)
    )  # fmt: skip
    assert 0.01 < near < far


def test_energy_distance_leaves_out_pairs_of_one_start_noise():
    ours, theirs = unit(4, 3, seed=1), unit(4, 3, seed=2)
    apart = torch.cdist(ours.double(), theirs.double())
    within = [torch.cdist(x.double(), x.double()) for x in (ours, theirs)]
    off = ~torch.eye(4, dtype=torch.bool)
    wanted = 2 * apart[off].mean() - within[0][off].mean() - within[1][off].mean()
    assert energy_distance(ours, theirs) == pytest.approx(float(wanted), abs=1e-6)


def test_layout_features_are_unit_vectors_that_see_place_and_colour_but_not_size():
    features = layout_features()
    found = features.of(pictures(3))
    assert found.shape == (3, 8 * 8 * 3 + 4 * 4 * 8)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    left, right, blue = (
        draw([Scene("circle", colour, "small", place, "white")], np.random.default_rng(0))[0]
        for colour, place in (("red", "left"), ("red", "right"), ("blue", "left"))
    )
    a, b, c = features.of([left, right, blue])
    assert float(a @ a) > float(a @ b) + 0.01 and float(a @ a) > float(a @ c) + 0.01
    larger = np.repeat(np.repeat(left, 4, axis=0), 4, axis=1)
    assert float(features.of([larger])[0] @ a) > 0.999
    assert torch.isfinite(features.of([np.zeros((64, 64, 3), np.uint8)])).all()


def seen(shape: str, *, valid: bool = True) -> Measurement:
    return Measurement(valid, shape, "red", "small", "centre", "white")


def test_seeds_apart_is_one_in_the_mean_for_even_draws_and_zero_for_one_answer():
    generator = np.random.default_rng(0)
    caption = CAPTION.replace("circle", "shape")
    drawn = [[seen(str(generator.choice(SHAPES))) for _ in range(4)] for _ in range(3000)]
    even = seeds_apart([caption] * 3000, drawn)
    assert list(even) == ["shape"]
    assert even["shape"] == pytest.approx(1.0, abs=0.02)
    assert seeds_apart([caption], [[seen("circle")] * 5]) == {"shape": 0.0}


def test_seeds_apart_does_not_see_other_prompts_or_broken_pictures():
    caption = CAPTION.replace("circle", "shape")
    rows = [[seen("circle")] * 3, [seen("square")] * 3]
    assert seeds_apart([caption] * 2, rows) == {"shape": 0.0}
    broken = [seen("circle"), seen("circle"), seen("square", valid=False)]
    assert seeds_apart([caption], [broken]) == {"shape": 0.0}
    assert seeds_apart([CAPTION], rows[:1]) == {}  # everything is said


def test_counts_are_those_of_the_pictures():
    scenes = [Scene("circle", "red", "small", "centre", "white")] * 3
    good = list(draw(scenes, np.random.default_rng(0)))
    row = [*good, np.zeros((64, 64, 3), np.uint8)]
    found = count_shapes([CAPTION], [row], [row])
    assert (found["valid"], found["adherence"]) == (0.75, 0.75)
    said_wrong = count_shapes([CAPTION.replace("red", "blue")], [row], [row])
    assert (said_wrong["valid"], said_wrong["adherence"]) == (0.75, 0.0)


def test_shapes_of_another_size_are_not_counted_and_the_log_says_so_once(caplog):
    small = [[np.zeros((32, 48, 3), np.uint8)] * 2]
    measures = shapes_measures() + feature_measures(layout_features())
    with caplog.at_level("INFO"):
        found = measures([CAPTION], small, small)
        assert measures([CAPTION], [list(row) for row in small], small) == found
    assert set(found) == {"sample_diversity", "teacher_distance"}
    (line,) = [text for text in caplog.messages if "valid samples" in text]
    assert "64 x 64" in line and "48 x 32" in line


def test_feature_measures_are_means_over_prompts():
    measures = feature_measures(layout_features())
    rows = [pictures(4, seed) for seed in (1, 2)]
    found = measures(["a", "b"], rows, rows)
    features = layout_features()
    wanted = np.mean([sample_diversity(features.of(row)) for row in rows])
    assert found["sample_diversity"] == pytest.approx(float(wanted))
    other = measures(["a", "b"], rows, [pictures(4, seed) for seed in (3, 4)])
    assert found["teacher_distance"] <= 0 < other["teacher_distance"] + 0.05
    assert set(found) == set(measures.labels) == {"sample_diversity", "teacher_distance"}


@pytest.fixture
def clip_folder(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(
        text_config=small | {"vocab_size": 49408, "max_position_embeddings": 77},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": 32}')
    return tmp_path


def test_a_clip_folder_gives_its_first_token(clip_folder, monkeypatch):
    from transformers import AutoTokenizer, CLIPVisionModel

    class Tokens(dict):
        def to(self, device):
            return self

    def tokenizer(texts, **_):
        return Tokens(input_ids=torch.tensor([[49406, 320, 49407]]))

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: tokenizer)
    features = folder_features(clip_folder, torch.device("cpu"))
    shown = pictures(3, side=48)
    found = features.of(shown)
    vision = CLIPVisionModel.from_pretrained(clip_folder)
    from dpdmd_studio.trainer.evaluation.features import _Preparation

    inputs = _Preparation(clip_folder, torch.device("cpu"))(shown)
    assert inputs.shape == (3, 3, 32, 32)
    with torch.no_grad():
        wanted = functional.normalize(vision(inputs).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(found, wanted)
    assert features.prompt_score is not None
    score = feature_measures(features)(["a"], [shown], [shown])["clip_score"]
    assert -1 <= score <= 1 and score == features.prompt_score("a", shown)


def test_a_dino_folder_gives_its_pooled_output(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5, 0.5, 0.5], '
        '"image_std": [0.5, 0.5, 0.5]}'
    )
    features = folder_features(tmp_path, torch.device("cpu"))
    shown = pictures(2, side=28)
    inputs = torch.stack([torch.from_numpy(p).permute(2, 0, 1) / 127.5 - 1 for p in shown])
    with torch.no_grad():
        wanted = functional.normalize(model(inputs).pooler_output, dim=-1)
    torch.testing.assert_close(features.of(shown), wanted)
    assert features.prompt_score is None and "dinov2" in features.title


@pytest.mark.parametrize("name", ["missing", "empty", "text model", "no weights", "damaged"])
def test_a_features_folder_that_is_no_model_is_refused(tmp_path, clip_folder, name):
    folder = tmp_path / "folder"
    if name != "missing":
        folder.mkdir()
    if name == "text model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    if name == "no weights":
        (folder / "config.json").write_text((clip_folder / "config.json").read_text())
    if name == "damaged":
        (folder / "config.json").write_text("{")
    with pytest.raises(SettingsError, match=r"no folder of image features.*Expected a DINO"):
        folder_features(folder, torch.device("cpu"))

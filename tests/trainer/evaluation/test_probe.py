"""A checkpoint whose few plain steps look like its guided ones is named before it is trained."""

from __future__ import annotations

import numpy as np
import pytest
from dpdmd_studio.app.findings.outcome import needs_no_distilling
from dpdmd_studio.app.runs.facts import RunFacts, read_facts
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.evaluation import previews
from dpdmd_studio.trainer.evaluation.previews import Previews
from dpdmd_studio.trainer.evaluation.probe import distance_share
from tiny_runs import new_run


def shapes(seed: int, count: int = 3) -> list[list[np.ndarray]]:
    """Random blocks of colour, by [prompt][seed]."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (2, count, 8, 8, 3), dtype=np.uint8)
    return [[np.kron(image, np.ones((8, 8, 1), np.uint8)) for image in row] for row in small]


def faded(images, by: float) -> list[list[np.ndarray]]:
    return [[(128 + by * (i.astype(float) - 128)).astype(np.uint8) for i in row] for row in images]


def test_the_same_images_are_near_and_other_ones_as_far_as_seeds():
    own = shapes(0)
    assert distance_share(own, own) == pytest.approx(0, abs=1e-6)
    assert distance_share(own, faded(own, 0.6)) < 0.02  # guidance adds contrast
    assert 0.8 < distance_share(own, shapes(1)) < 1.25
    grey = [[np.full_like(image, 127) for image in row] for row in own]
    assert distance_share(own, grey) > 0.5


def test_too_little_to_compare_says_nothing():
    assert distance_share(shapes(0, 1), shapes(0, 1)) is None
    alike = [[row[0], row[0].copy()] for row in shapes(0)]
    assert distance_share(alike, alike) is None


@pytest.mark.parametrize(("share", "said"), [(0.1, True), (0.29, True), (0.31, False)])
def test_the_finding_says_what_was_seen(share, said):
    facts = {"distance_share": share, "plain_steps": 4, "guided_steps": 28, "guidance_scale": 7.0}
    found = needs_no_distilling(RunFacts(probe=facts))
    assert (found is not None) == said
    assert found is None or "28 steps with guidance 7 before" in found.text
    assert needs_no_distilling(RunFacts(probe={"distance_share": "x", "plain_steps": 4})) is None


@pytest.mark.parametrize("share", [0.1, 0.9, None])
def test_a_run_probes_its_teacher_once(share, files, tmp_path, monkeypatch, caplog):
    run = new_run(tmp_path, files["sd1"], preview_every=1)
    monkeypatch.setattr(previews, "distance_share", lambda guided, plain: share)
    session = open_session(run)
    before = session.roles.state("student")
    Previews(run, session).teacher()
    said = [r.getMessage() for r in caplog.records if "need no distilling" in r.getMessage()]
    assert len(said) == (share == 0.1)
    probe = read_facts(run).probe
    assert probe.get("distance_share") == share and len(probe) == (4 if share else 0)
    (run.path / "probe.json").unlink(missing_ok=True)
    Previews(run, session).teacher()
    assert not (run.path / "probe.json").exists()
    after = session.roles.state("student")
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_a_probe_that_cannot_be_drawn_costs_no_run(files, tmp_path, monkeypatch):
    from dpdmd_studio.core.errors import NonFiniteError

    run = new_run(tmp_path, files["sd1"], preview_every=1)
    original, calls = Previews._images, []

    def images(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise NonFiniteError("no numbers")
        return original(self, *arguments)

    monkeypatch.setattr(Previews, "_images", images)
    Previews(run, open_session(run)).teacher()
    assert len(calls) == 2 and (run.previews / "teacher.png").exists()
    assert not (run.path / "probe.json").exists()

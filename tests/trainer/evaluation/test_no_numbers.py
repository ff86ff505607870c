"""NaN and infinity are said in one line, wherever images are made: never a black picture."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from dpdmd_studio.comfy_nodes.sampling.compare import as_image
from dpdmd_studio.core.errors import NonFiniteError
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.evaluation import evaluate
from dpdmd_studio.trainer.evaluation.monitor import Monitor
from dpdmd_studio.trainer.evaluation.previews import Previews
from dpdmd_studio.trainer.evaluation.run_report import write_run_report
from dpdmd_studio.trainer.loading import decoding
from dpdmd_studio.trainer.text import cache, encoders
from style_loras import plain
from tiny_runs import new_run

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def overflowing(monkeypatch):
    """The second of the images of every batch comes out as infinity."""
    original = evaluate.integrate

    def integrate(*arguments):
        latents = original(*arguments)
        latents[-1, 0, 0, 0] = torch.inf
        return latents

    monkeypatch.setattr(evaluate, "integrate", integrate)


@pytest.mark.usefixtures("overflowing")
def test_a_run_goes_on_and_says_what_it_leaves_out(files, tmp_path, caplog):
    run = new_run(tmp_path, files["sd1"], preview_every=1, evaluate_every=1)
    session = open_session(run)
    Previews(run, session).student(1)
    assert not list(run.previews.iterdir())
    monitor = Monitor(run, session, lambda: False)
    monitor._prompts, monitor._usable = ["a cat"], True
    monitor.measure(1)
    assert not monitor.usable
    assert write_run_report(session, monitor, tmp_path / "x.safetensors", None) is None
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 3
    assert "previews/step-00000001.png is left out." in said[0]
    assert "The student after update 1 is not measured. Teacher" in said[1]
    assert "There is no report. Teacher" in said[2]
    assert all("images cannot be drawn, since their latents hold NaN" in line for line in said)


def test_latents_that_are_no_numbers_are_refused_with_what_helps(files):
    base = plain(files["sd1"])
    latents = torch.zeros(2, 4, 2, 2)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"1 of 2 images .* a LoRA's strength"):
        decoding.decode(base, latents)
    half = dataclasses.replace(base, dtype=torch.float16)
    with pytest.raises(NonFiniteError, match="--dtype bfloat16"):
        decoding.decode(half, latents)


def test_a_decoder_that_makes_no_numbers_gives_way_to_the_linear_map(files, monkeypatch, caplog):
    base = plain(files["sd1"])
    component = base.decoder.component
    monkeypatch.setattr(
        type(component), "load", lambda *_: lambda latent: torch.full((1, 3, 16, 16), torch.nan)
    )
    (image,) = decoding.decode(base, torch.ones(1, 4, 2, 2))
    assert image.any() and "so it is damaged. Images are shown through a linear map" in caplog.text
    with pytest.raises(NonFiniteError, match=r"so it is damaged\. Name a sound one with --vae"):
        decoding.decode(base, torch.ones(1, 4, 2, 2), measured=True)


def test_a_prompt_of_no_numbers_is_named_even_if_an_older_version_kept_it(
    files, tmp_path, monkeypatch
):
    base = plain(files["sd1"])
    (kept,) = cache.encode_prompts(base, ["a cat"], cache_folder=tmp_path).values()
    broken = dataclasses.replace(kept, context=kept.context * torch.inf)
    cache._write(next(tmp_path.iterdir()), broken)
    again = cache.encode_prompts(base, ["a cat"], cache_folder=tmp_path)
    assert torch.equal(
        cache._read(next(tmp_path.iterdir()), base.family.text).context, kept.context
    )
    assert torch.isfinite(again["a cat"].context).all()
    monkeypatch.setattr(encoders, "weighted", lambda tokens, weights: tokens * torch.inf)
    with pytest.raises(NonFiniteError, match=r"'\(cat:9\)' is encoded to NaN .*0 to 2"):
        cache.encode_prompts(base, ["(cat:9)"], cache_folder=tmp_path)


def test_an_image_of_no_numbers_is_refused_in_the_comparing_node():
    with pytest.raises(NonFiniteError, match="would be shown black"):
        as_image(torch.full((1, 2, 2, 3), torch.nan))

"""Written LoRAs that hold the teacher's LoRAs, too: exactly the sum, wherever they are loaded."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.core.lora.file import lora_deltas, merge_lora, parameter_shapes, read_lora
from dpdmd_studio.core.lora.math import LoraPair, concatenated, delta
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from lora_networks import by_module, weight_shapes
from safetensors.torch import load_file
from style_loras import EXTRA, change, plain, style
from tiny_runs import BUILDERS, distil, new_run

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize("file_format", ["kohya", "peft"])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_lora_that_includes_the_styles_is_the_sum_of_all(name, file_format, files, tmp_path):
    """Base + written LoRA = base + styles + student, to the rounding of the file's fp16."""
    first = style(tmp_path / "a.safetensors", files[name], encoders=False)
    second = style(tmp_path / "b.safetensors", files[name], encoders=False, rank=2, seed=9)
    loras = [(first.path, 0.7), (second.path, -0.4)]
    run = new_run(
        tmp_path,
        files[name],
        teacher_loras=loras,
        include=True,
        file_format=file_format,
        ema_decay=0.0,
        steps=2,
    )
    outcome = distil(run)
    base = plain(files[name])
    shapes = weight_shapes(base.network)
    written = read_lora(outcome.lora)
    deltas = lora_deltas(written, base.family, base.config, parameter_shapes(base.network))
    found = by_module(deltas)
    student = outcome.session.roles.state("student")
    names = {key.rsplit(".", 1)[0] for key in student}
    assert found.keys() == names | set(first.denoiser) | set(EXTRA[name])
    for module, pair in found.items():
        parts = [(first.denoiser, 0.7), (second.denoiser, -0.4)]
        terms = [(pairs[module], s) for pairs, s in parts if module in pairs]
        if module in names:
            halves = (student[f"{module}.{half}"] for half in ("lora_A", "lora_B"))
            terms.append((LoraPair(*halves), 1.0))
        expected = sum(s * change(p, shapes[module]) for p, s in terms)
        sizes = sum(
            abs(s) * change(LoraPair(p.down.abs(), p.up.abs(), p.scale), shapes[module])
            for p, s in terms
        )
        error = (delta(pair, shapes[module]).double() - expected).abs()
        # two halves of 11 bits each, and what lies below fp16's smallest normal number
        assert bool((error <= 2**-10 * sizes + 1e-7).all()), module
    recipe = written.recipe
    assert [lora.included for lora in recipe.merged_loras] == [True, True]
    check_pictures(outcome, files[name], deltas)


def check_pictures(outcome, path, deltas):
    """The written file on the plain checkpoint predicts what the student predicts."""
    fresh = open_checkpoint(path, dtype=torch.float32, device="cpu").load()
    session = outcome.session
    x = torch.randn(1, fresh.detection.latent_channels, 4, 4, generator=seeded())
    condition = next(iter(session.encoded.values()))
    timestep = torch.tensor([500.0])
    session.roles.use("student")
    with torch.no_grad():
        student = session.call(x, timestep, condition)
        before = fresh.call()(x, timestep, condition)
        merge_lora(fresh.network, deltas)
        merged = fresh.call()(x, timestep, condition)
    moved = float((student - before).abs().max())
    assert moved > 1e-3 and float((merged - student).abs().max()) < 0.02 * moved


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_side_by_side_is_exactly_the_sum_whatever_the_magnitudes():
    shape = torch.Size((6, 4, 3, 3))
    down = [torch.randn(r, 4, 3, 3, generator=seeded()) for r in (2, 3)]
    up = [torch.randn(6, r, 1, 1, generator=seeded()) for r in (2, 3)]
    large, small = LoraPair(down[0] * 100, up[0], 0.5), LoraPair(down[1] * 1e-4, up[1] * 1e-3, 2.0)
    joined = concatenated([large, small], shape)
    assert (joined.rank, joined.scale) == (5, 1.0)
    torch.testing.assert_close(delta(joined, shape), delta(large, shape) + delta(small, shape))
    tiny = LoraPair(joined.down[2:].half().float(), joined.up[:, 2:].half().float())
    torch.testing.assert_close(delta(tiny, shape), delta(small, shape), rtol=5e-2, atol=1e-9)


def test_a_linear_pair_fits_a_convolution_of_one_pixel():
    shape = torch.Size((6, 4, 1, 1))
    linear = LoraPair(torch.randn(2, 4), torch.randn(6, 2), 0.5)
    other = LoraPair(torch.randn(3, 4, 1, 1), torch.randn(6, 3, 1, 1))
    joined = concatenated([linear, other], shape)
    torch.testing.assert_close(delta(joined, shape), delta(linear, shape) + delta(other, shape))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("file_format", ["kohya", "peft"])
def test_diffusers_loads_a_file_of_several_ranks_as_written(name, file_format, files, tmp_path):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    item = style(tmp_path / "a.safetensors", files[name], encoders=False)
    settings = {"include": True, "file_format": file_format, "steps": 1}
    run = new_run(tmp_path, files[name], teacher_loras=[(item.path, 0.7)], **settings)
    outcome = distil(run)
    pipeline = StableDiffusionPipeline if name == "sd1" else StableDiffusionXLPipeline
    ours, theirs = (
        open_checkpoint(files[name], dtype=torch.float32, device="cpu").load() for _ in range(2)
    )
    deltas = lora_deltas(
        read_lora(outcome.lora), ours.family, ours.config, parameter_shapes(ours.network)
    )
    merge_lora(ours.network, deltas)
    network = theirs.network
    state, alphas = pipeline.lora_state_dict(load_file(outcome.lora), unet_config=network.config)[
        :2
    ]
    pipeline.load_lora_into_unet(state, alphas, network)
    assert sum("lora_A" in key for key in network.state_dict()) == len(deltas)
    x = torch.randn(1, 4, 4, 4, generator=seeded())
    condition, timestep = next(iter(outcome.session.encoded.values())), torch.tensor([500.0])
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.call()(x, timestep, condition),
            ours.call()(x, timestep, condition),
            rtol=1e-3,
            atol=1e-4,
        )

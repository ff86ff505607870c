"""Conditioning batches, the network call, the VAE's pictures and the prediction check."""

from __future__ import annotations

import dataclasses

import checkpoints
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from dpdmd_studio.core.diffusion.schedule import FlowSchedule, Levels, VPSchedule
from dpdmd_studio.core.errors import CheckpointError
from dpdmd_studio.core.families import AskedSampling
from dpdmd_studio.trainer.loading import prediction_check
from dpdmd_studio.trainer.loading.checkpoint import Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.decoding import decode, linear_preview
from dpdmd_studio.trainer.loading.prediction_check import check_prediction_type, clear_prediction
from dpdmd_studio.trainer.model.conditioning import Conditioning


def load(path, dtype=torch.float32, prediction=None, vae=None):
    """A checkpoint in fp32."""
    overrides = Overrides(sampling=AskedSampling(prediction=prediction), vae=vae)
    return open_checkpoint(path, dtype=dtype, device="cpu", overrides=overrides).load()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tiny files of each family."""
    folder = tmp_path_factory.mktemp("checkpoints")
    makers = {"sd1": checkpoints.sd1, "sdxl": checkpoints.sdxl, "sd3": checkpoints.sd3}
    return {
        name: checkpoints.save(folder / f"{name}.safetensors", checkpoints.file_state(make()))
        for name, make in makers.items()
    }


def conditioning(checkpoint, tokens: int = 5, seed: int = 0) -> Conditioning:
    """Random conditioning that fits."""
    generator = torch.Generator().manual_seed(seed)
    config, name = checkpoint.config, checkpoint.family.name
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    pooled = {"sd1": None, "sdxl": 64, "sd3": 96}[name]
    return Conditioning(
        torch.randn(1, tokens, width, generator=generator),
        None if pooled is None else torch.randn(1, pooled, generator=generator),
        repeatable=name != "sd3",
    )


def noise(checkpoint, batch: int = 1, size: int = 8) -> torch.Tensor:
    """Seeded noise in the checkpoint's latent shape."""
    shape = (batch, checkpoint.detection.latent_channels, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_a_batch_can_be_taken_apart_repeated_and_joined():
    one = Conditioning(torch.randn(2, 3, 4), torch.randn(2, 5))
    assert torch.equal(Conditioning.cat([one.index([0]), one.index([1])]).context, one.context)
    twice = one.repeat(2)
    assert len(twice) == 4 and torch.equal(twice.pooled, torch.cat([one.pooled, one.pooled]))
    assert not one.zeros().context.any() and not one.zeros().pooled.any()
    assert one.to(dtype=torch.float64).context.dtype == torch.float64


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_prompts_of_different_lengths_batch_exactly_in_a_unet(name, files):
    checkpoint = load(files[name])
    call, x_t = checkpoint.call(), noise(checkpoint, 2)
    short, long = conditioning(checkpoint, 2), conditioning(checkpoint, 3, seed=1)
    together = Conditioning.cat([short, long])
    assert together.context.shape[1] == 6
    steps = torch.tensor([999.0, 40.0])
    with torch.no_grad():
        joined = call(x_t, steps, together)
        apart = torch.cat([call(x_t[:1], steps[:1], short), call(x_t[1:], steps[1:], long)])
    torch.testing.assert_close(joined, apart, rtol=1e-4, atol=1e-4)


def test_sd3_contexts_are_padded_with_zero_tokens():
    short, long = (Conditioning(torch.ones(1, n, 4), torch.ones(1, 2), repeatable=False)
                   for n in (2, 5))  # fmt: skip
    joined = Conditioning.cat([short, long])
    assert joined.context.shape == (2, 5, 4)
    assert not joined.context[0, 2:].any() and joined.context[1].all()


def test_sdxl_is_told_the_size_of_the_picture_it_makes(files):
    checkpoint = load(files["sdxl"])
    call, given = checkpoint.call(), conditioning(checkpoint)
    x_t = noise(checkpoint)[..., :4]  # 64 high, 32 wide
    steps = torch.tensor([500.0])
    with torch.no_grad():
        assert torch.equal(call(x_t, steps, given), call(x_t, steps, given.with_size(64, 32)))
        assert not torch.equal(call(x_t, steps, given), call(x_t, steps, given.with_size(32, 64)))
    ids = torch.tensor([[64.0, 32, 0, 0, 64, 32]])
    assert torch.equal(given.with_size(64, 32).time_ids, ids)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_the_network_runs_in_its_own_dtype_and_answers_in_fp32(name, files):
    checkpoint = load(files[name], dtype=torch.bfloat16)
    with torch.no_grad():
        output = checkpoint.call()(noise(checkpoint), torch.tensor(500.0), conditioning(checkpoint))
    assert output.dtype == torch.float32 and output.shape == noise(checkpoint).shape
    assert torch.equal(output, output.bfloat16().float())


def test_a_group_norm_of_a_16_bit_network_is_rounded_once(files):
    norm = load(files["sd1"], dtype=torch.bfloat16).call().network.conv_norm_out
    x = (50 + torch.randn(1, norm.num_channels, 8, 8)).bfloat16()  # its mean is large
    scale, shift = norm.weight.float(), norm.bias.float()
    exact = torch.nn.functional.group_norm(x.float(), norm.num_groups, scale, shift, norm.eps)
    assert torch.equal(norm(x), exact.bfloat16())


def test_each_family_has_its_schedule(files, tmp_path):
    assert load(files["sd1"]).schedule == VPSchedule(False)
    assert load(files["sd3"]).schedule == FlowSchedule(3.0)
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    state = checkpoints.file_state(checkpoints.sdxl()) | markers
    path = checkpoints.save(tmp_path / "x.safetensors", state)
    assert load(path).schedule == VPSchedule(True)


def as_pictures(images: torch.Tensor) -> np.ndarray:
    """uint8 pictures of RGB in [-1, 1]."""
    scaled = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("name", "scale", "shift"), [("sd1", 0.18215, 0), ("sdxl", 0.13025, 0), ("sd3", 1.5305, 0.0609)]
)
def test_pictures_are_those_of_diffusers_own_vae(name, scale, shift, files):
    checkpoint = load(files[name])
    vae = checkpoints.kl_vae(16, quant_conv=False) if name == "sd3" else checkpoints.kl_vae()
    latents = noise(checkpoint, 2)
    with torch.no_grad():
        inputs = (latents / scale + shift).split(1)
        expected = torch.cat([vae.decode(item).sample for item in inputs])
    assert np.array_equal(decode(checkpoint, latents), as_pictures(expected))


def tiny_state(width: int = 8, channels: int = 16) -> tuple[AutoencoderTiny, dict]:
    """A TAESD and its tensors under the names that checkpoints use."""
    vae = checkpoints.randomised(
        AutoencoderTiny(latent_channels=channels, decoder_block_out_channels=(width,) * 4)
    )
    names = {
        f"taesd_decoder.{int(key.split('.')[2]) + 1}.{key.split('.', 3)[3]}": value
        for key, value in vae.state_dict().items() if key.startswith("decoder.")
    }  # fmt: skip
    return vae, names


def test_a_tiny_vae_in_the_checkpoint_decodes_with_its_scale_and_shift(tmp_path):
    vae, names = tiny_state()
    full = checkpoints.file_state(checkpoints.sd3())
    state = {key: value for key, value in full.items() if not key.startswith("first_stage_model.")}
    state |= {f"first_stage_model.{key}": value for key, value in names.items()}
    state["first_stage_model.vae_scale"] = torch.tensor(2.0)
    state["first_stage_model.vae_shift"] = torch.tensor(0.5)
    checkpoint = load(checkpoints.save(tmp_path / "x.safetensors", state))
    assert checkpoint.detection.vae == "tiny"
    latents = noise(checkpoint)
    with torch.no_grad():
        expected = vae.decode((latents / 1.5305 + 0.0609 - 0.5) * 2.0).sample
    assert np.array_equal(decode(checkpoint, latents), as_pictures(expected))


def test_a_named_vae_file_replaces_the_checkpoints_own(files, tmp_path):
    vae, names = tiny_state(channels=4)
    path = checkpoints.save(tmp_path / "taesd.safetensors", names)
    checkpoint = load(files["sd1"], vae=path)
    assert any("VAE taesd.safetensors (tiny)" in note for note in checkpoint.notes)
    latents = noise(checkpoint)
    with torch.no_grad():
        expected = vae.decode(latents).sample  # a TAESD on its own takes the network's latents
    assert np.array_equal(decode(checkpoint, latents), as_pictures(expected))
    with pytest.raises(CheckpointError, match="holds no VAE decoder"):
        load(files["sd1"], vae=checkpoints.save(tmp_path / "x.safetensors", {"a": torch.ones(1)}))


def test_a_vae_of_older_diffusers_reads_its_attention(files, tmp_path):
    vae = checkpoints.kl_vae()
    older = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    state = {}
    for name, value in vae.state_dict().items():
        for new, old in older.items():
            name = name.replace(new, old)
        state[name] = value
    checkpoint = load(files["sd1"], vae=checkpoints.save(tmp_path / "older.safetensors", state))
    latents = noise(checkpoint)
    assert np.array_equal(decode(checkpoint, latents), decode(load(files["sd1"]), latents))


def test_without_a_vae_the_preview_is_linear_and_said_to_be(tmp_path):
    state = checkpoints.file_state(checkpoints.sd1())
    state = {key: value for key, value in state.items() if not key.startswith("first_stage")}
    checkpoint = load(checkpoints.save(tmp_path / "x.safetensors", state))
    assert any("rough linear map" in note for note in checkpoint.notes)
    latents = noise(checkpoint)
    assert decode(checkpoint, latents).shape == (1, 64, 64, 3)
    doubled = linear_preview(checkpoint, 2 * latents)
    torch.testing.assert_close(doubled, 2 * linear_preview(checkpoint, latents))


ALPHA = 0.068


def picture(size: int = 64) -> torch.Tensor:
    """A smooth picture with unit-scale contrast: what is left of x0 at pure noise."""
    ramp = torch.linspace(-1, 1, size)
    return torch.stack([torch.outer(ramp, ramp), ramp.expand(size, size), ramp[:, None] * 1.0
                        + ramp * 0, -torch.outer(ramp, ramp)])[None]  # fmt: skip


def test_trained_outputs_are_told_apart_and_anything_else_passes():
    eps = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(2))
    std = (1 - ALPHA**2) ** 0.5
    x_t = ALPHA * picture() + std * eps
    assert clear_prediction(eps, x_t) == "eps"
    for contrast in (0.3, 1.0, 2.0):
        assert clear_prediction(ALPHA * eps - std * contrast * picture(), x_t) == "v"
    assert clear_prediction(torch.randn(1, 4, 64, 64), x_t) is None
    assert clear_prediction(torch.zeros(1, 4, 64, 64), x_t) is None
    small = slice(0, 8)
    assert clear_prediction(picture()[..., small, small], x_t[..., small, small]) is None


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_untrained_networks_pass_whatever_they_claim(name, files):
    for prediction in load(files[name]).family.sampling.predictions:
        checkpoint = load(files[name], prediction=prediction)
        small = dataclasses.replace(checkpoint.detection, resolution=192)
        checkpoint.detection = small
        check_prediction_type(checkpoint, conditioning(checkpoint))


class Linear:
    """The best linear denoiser of pictures whose power falls with frequency, as latents' does.

    In each of its frequencies x0 is Gaussian of known variance, so that E[x0 | x] is exact.
    """

    def __init__(self, prediction: str, detail: float, size: int = 64) -> None:
        f = torch.fft.fftfreq(size)
        squared = f[:, None] ** 2 + f[None] ** 2
        power = 1 / (squared + 1 / size**2)
        self.power = 0.8 * (1 - detail) * power / power.mean() + detail
        self.prediction = prediction

    def __call__(self, x_t, timesteps, conditioning):
        flow = self.prediction == "flow"
        t = timesteps.double()
        if flow:
            levels = Levels.at_sigmas(FlowSchedule(), t / 1000)
        else:
            levels = Levels.at_positions(VPSchedule(), t)
        alpha, std = levels.alphas.double(), levels.stds.double()
        spectrum = torch.fft.fft2(x_t.double())
        gain = alpha * self.power / (alpha**2 * self.power + std**2)
        x0 = torch.fft.ifft2(spectrum * gain).real
        eps = (x_t - alpha * x0) / std
        found = {"eps": eps, "v": alpha * eps - std * x0, "flow": eps - x0}[self.prediction]
        return found.float()


@pytest.mark.parametrize("detail", [0.02, 0.1])
@pytest.mark.parametrize("claimed", ["eps", "v", "flow"])
@pytest.mark.parametrize("truth", ["eps", "v", "flow"])
def test_eps_v_and_flow_are_told_apart(truth, claimed, detail, files, monkeypatch):
    checkpoint = load(files["sdxl"], prediction=None if claimed == "eps" else claimed)
    monkeypatch.setattr(type(checkpoint), "call", lambda self: Linear(truth, detail))
    monkeypatch.setattr(prediction_check, "MAX_LATENT_SIZE", 64)
    if truth == claimed:
        check_prediction_type(checkpoint, conditioning(checkpoint))
        return
    said = rf"taken as a '{claimed}' model.*correlation .*Set --prediction {truth}"
    with pytest.raises(CheckpointError, match=said):
        check_prediction_type(checkpoint, conditioning(checkpoint))


def test_a_flow_of_a_family_without_flows_is_refused_by_what_was_measured(files, monkeypatch):
    checkpoint = load(files["sd1"])
    monkeypatch.setattr(type(checkpoint), "call", lambda self: Linear("flow", 0.1))
    monkeypatch.setattr(prediction_check, "MAX_LATENT_SIZE", 64)
    said = r"at noise levels 0\.25 0\.4 0\.55 -.*expected.*eps or v are supported"
    with pytest.raises(CheckpointError, match=said):
        check_prediction_type(checkpoint, conditioning(checkpoint))


def test_a_clear_contradiction_stops_with_the_setting_to_change(files, monkeypatch):
    checkpoint = load(files["sd1"], prediction="v")

    class Echo:
        """A network that returns its input, as eps networks do at pure noise."""

        def __call__(self, x_t, timesteps, conditioning):
            return x_t

    monkeypatch.setattr(type(checkpoint), "call", lambda self: Echo())
    with pytest.raises(CheckpointError, match=r"taken as a 'v' model.*Set --prediction eps"):
        check_prediction_type(checkpoint, conditioning(checkpoint))
    assert prediction_check.EPS_CORRELATION == 0.9

"""Outside the updates: encoding, drawing and decoding ask what is free, and fall back."""

from __future__ import annotations

import contextlib
import copy
import sys

import checkpoints
import numpy as np
import pytest
import torch
from dpdmd_studio.trainer import device as devices
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.evaluation import evaluate
from dpdmd_studio.trainer.evaluation.monitor import Monitor
from dpdmd_studio.trainer.evaluation.previews import Previews
from dpdmd_studio.trainer.evaluation.run_evaluation import run_arms
from dpdmd_studio.trainer.loading import decoding
from dpdmd_studio.trainer.loading.checkpoint import OpenedCheckpoint, open_checkpoint
from dpdmd_studio.trainer.loading.vae import KLDecoder
from dpdmd_studio.trainer.loading.weights import Component
from dpdmd_studio.trainer.memory import portions
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from dpdmd_studio.trainer.memory.portions import Portions
from dpdmd_studio.trainer.text import cache
from dpdmd_studio.trainer.text.block_by_block import block_by_block
from full_card import Card
from PIL import Image
from tiny_runs import heard, new_run

GIB = 2**30
CARD = torch.device("cuda")
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def opened(path) -> OpenedCheckpoint:
    return open_checkpoint(path, dtype=torch.float32, device="cpu")


def a_card(monkeypatch, *, refuses=lambda component, device: False) -> list[tuple[str, str]]:
    """Components that are loaded to a card lie on the CPU; (what, where) of each that was asked."""
    asked: list[tuple[str, str]] = []
    original = Component.load

    def load(self, dtype, device):
        asked.append((self.what, torch.device(device).type))
        if refuses(self, torch.device(device)):
            raise torch.OutOfMemoryError(FULL)
        return original(self, dtype, "cpu")

    monkeypatch.setattr(Component, "load", load)
    return asked


@pytest.mark.parametrize(
    "said",
    [
        FULL,
        "MPS backend out of memory (allocated 9 GB)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    ],
)
def test_a_lack_of_memory_is_known_by_any_name(said):
    assert devices.is_out_of_memory(RuntimeError(said))
    assert not devices.is_out_of_memory(ValueError(said))
    assert not devices.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


# Encoding


def in_blocks(monkeypatch, *, full: bool = False) -> list[str]:
    """Encoders lie on the CPU while they go a block at a time; the classes of those that did."""
    seen: list[str] = []

    def stand_in(model, device):
        seen.append(device.type)
        if full:
            raise torch.OutOfMemoryError(FULL)
        return model

    monkeypatch.setattr(cache, "block_by_block", stand_in)
    return seen


@pytest.mark.parametrize("free", [None, GIB, 1000])
def test_an_encoder_that_does_not_fit_goes_a_block_at_a_time(free, files, tmp_path, monkeypatch):
    checkpoint = opened(files["sdxl"])
    plain = cache.encode_prompts(checkpoint, ["a cat"], cache_folder=tmp_path / "plain")
    asked, blocks = a_card(monkeypatch), in_blocks(monkeypatch)
    monkeypatch.setattr(cache, "free_memory", lambda device: free)
    checkpoint.device = CARD
    with heard() as said:
        found = cache.encode_prompts(checkpoint, ["a cat"], cache_folder=tmp_path / "card")
    short = free == 1000
    assert [place for _, place in asked] == ["cpu" if short else "cuda"] * 2
    assert blocks == ["cuda"] * 2 * short
    assert sum("a block at a time" in line for line in said) == 2 * short
    assert torch.equal(found["a cat"].context, plain["a cat"].context)


ENCODERS = {
    "clip": lambda: checkpoints.clip(64),
    "projected": lambda: checkpoints.clip(64, projected=True),
    "t5": lambda: checkpoints.t5(),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_block_at_a_time_gives_the_same(kind):
    model = copy.deepcopy(ENCODERS[kind]()).requires_grad_(False)
    ids = torch.tensor([[1, 5, 7, 2]])
    with torch.no_grad():
        whole = model(input_ids=ids).last_hidden_state
        block_by_block(model, torch.device("cpu"))
        assert torch.equal(model(input_ids=ids).last_hidden_state, whole)


@pytest.mark.parametrize("kind", ENCODERS)
def test_one_block_at_a_time_is_on_the_device(kind):
    """A device that only knows shapes refuses whatever was left elsewhere."""
    model = copy.deepcopy(ENCODERS[kind]()).requires_grad_(False)
    kept = {name: value.data_ptr() for name, value in model.state_dict().items()}
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    there: list[list[bool]] = []

    def look(*_):
        there.append([all(p.is_meta for p in block.parameters()) for block in blocks])

    meta = torch.device("meta")
    block_by_block(model, meta)
    for block in blocks:
        block.register_forward_pre_hook(look)
    with torch.no_grad():
        model(input_ids=torch.ones(1, 4, dtype=torch.int64, device=meta))
    count = len(blocks)
    assert there == [[i == j for j in range(count)] for i in range(count)]
    for name, value in model.state_dict().items():
        in_a_block = ".layers." in name or ".block." in name
        assert value.is_meta != in_a_block, name
        assert value.is_meta or value.data_ptr() == kept[name]


def test_a_block_goes_home_when_it_fails(monkeypatch):
    model = copy.deepcopy(checkpoints.t5()).requires_grad_(False)
    meta = torch.device("meta")
    block_by_block(model, meta)

    def full(*_, **__):
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(model.encoder.block[1], "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        model(input_ids=torch.ones(1, 4, dtype=torch.int64, device=meta))
    assert not any(p.is_meta for p in model.encoder.block.parameters())


def test_an_encoder_is_asked_for_what_it_takes(files, tmp_path, monkeypatch):
    component = opened(files["sd1"]).encoders["clip_l"]
    size = component.num_bytes(torch.float32)
    model = component.load(torch.float32, "cpu")
    assert size == sum(p.numel() * p.element_size() for p in model.state_dict().values())
    assert component.num_bytes(torch.bfloat16) == size // 2


@pytest.mark.parametrize("stage", ["loading", "first", "second"])
def test_an_encoder_that_runs_out_goes_on_on_the_cpu(stage, files, tmp_path, monkeypatch):
    texts = ["a cat", "a dog", "a house"]
    checkpoint = opened(files["sdxl"])
    plain = cache.encode_prompts(checkpoint, texts, cache_folder=tmp_path / "plain")
    now = {"device": "cpu", "done": 0}

    def refuses(component, device):
        now["device"] = device.type
        return stage == "loading" and device.type == "cuda"

    asked, blocks = a_card(monkeypatch, refuses=refuses), in_blocks(monkeypatch, full=True)
    original = cache.plan

    def plan(kind, checkpoint, clip_skip):
        how = original(kind, checkpoint, clip_skip)

        def encode(model, text, before):
            on_card = now["device"] == "cuda"
            if on_card and text == {"first": "a cat", "second": "a dog"}[stage]:
                raise RuntimeError(FULL)
            return how.encode(model, text, before)

        return cache.EncoderPlan(how.num_tokens, encode)

    monkeypatch.setattr(cache, "plan", plan)
    monkeypatch.setattr(cache, "free_memory", lambda device: None)
    checkpoint.device = CARD
    found = cache.encode_prompts(checkpoint, texts, cache_folder=tmp_path / "card")
    assert [place for _, place in asked] == ["cuda", "cpu", "cpu"] * 2
    assert blocks == ["cuda"] * 2
    for text in texts:
        assert torch.equal(found[text].context, plain[text].context)


def test_another_error_of_an_encoder_is_no_lack_of_memory(files, tmp_path, monkeypatch):
    checkpoint = opened(files["sd1"])

    def broken(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Component, "load", broken)
    checkpoint.device = CARD
    monkeypatch.setattr(cache, "free_memory", lambda device: None)
    with pytest.raises(RuntimeError, match="device-side"):
        cache.encode_prompts(checkpoint, ["a cat"], cache_folder=tmp_path)


def test_the_denoiser_is_loaded_once_and_after_the_prompts(files, tmp_path, monkeypatch, home):
    loaded: list[str] = []
    moved: list[object] = []
    original = Component.load

    def load(self, dtype, device):
        loaded.append(self.what)
        network = original(self, dtype, device)
        monkeypatch.setattr(network, "to", lambda *place: moved.append(place) or network)
        return network

    monkeypatch.setattr(Component, "load", load)
    prompts = [f"{color} {what}" for color in ("red", "blue") for what in ("cat", "dog", "house")]
    run = new_run(tmp_path, files["sdxl"], evaluation_prompts=2, evaluate_every=1)
    (run.path / "evaluation-prompts.txt").write_text("\n".join(prompts) + "\n")
    session = open_session(run)
    assert loaded[-1] == "UNet" and loaded.count("UNet") == 1 and len(loaded) == 3
    assert not moved
    del loaded[:]
    held_out = run.evaluation_prompts()
    assert held_out
    found = cache.encode_prompts(
        session.checkpoint, held_out[:6], cache_folder=home / "prompt-cache"
    )
    assert not loaded and len(found) == len(held_out[:6])


def test_a_held_out_prompt_that_gives_no_numbers_costs_no_run(files, tmp_path, monkeypatch):
    checkpoint = opened(files["sd1"])
    original = cache.combine

    def combine(checkpoint, parts):
        found = original(checkpoint, parts)
        if combine.calls == 1:
            found.context[:] = torch.nan
        combine.calls += 1
        return found

    combine.calls = 0
    monkeypatch.setattr(cache, "combine", combine)
    found = cache.encode_prompts(
        checkpoint, ["a cat"], cache_folder=tmp_path, ahead=["(bad:9)", "a dog", "a cat"]
    )
    assert list(found) == ["a cat"] and "a dog" not in found
    assert len(list(tmp_path.glob("*.safetensors"))) == 2  # the bad one is encoded when asked for


# Drawing


def test_the_first_image_tells_how_many_fit(monkeypatch):
    @contextlib.contextmanager
    def peak(device):
        yield lambda: 100

    free = {"bytes": 1000}
    monkeypatch.setattr(portions, "measured_peak", peak)
    monkeypatch.setattr(portions, "free_memory", lambda device: free["bytes"])
    found = Portions(CARD, 32)
    assert found.size(guided=True) == 1
    assert found.attempt(1, lambda: "drawn", guided=True) == "drawn"
    assert found.size(guided=True) == 8  # of 10 that there is room for
    assert found.size(guided=False) == 1  # nothing is known of these
    free["bytes"] = 50
    assert found.size(guided=True) == 1
    free["bytes"] = 10**6
    assert found.size(guided=True) == 32


def test_images_that_do_not_fit_are_drawn_fewer_at_once():
    found = Portions(torch.device("cpu"), 32)
    assert found.size(guided=False) == 32

    def full():
        raise torch.OutOfMemoryError(FULL)

    assert found.attempt(20, full, guided=False) is None
    assert found.size(guided=False) == 10
    with pytest.raises(torch.OutOfMemoryError):
        found.attempt(1, full, guided=False)
    with pytest.raises(ValueError, match="other"):
        found.attempt(4, lambda: int("other"), guided=False)


def test_an_arm_goes_on_with_fewer_images(files, tmp_path, monkeypatch):
    drawn: list[int] = []
    original = evaluate.integrate

    def integrate(call, latents, *arguments):
        drawn.append(len(latents))
        if len(latents) > 2 and len(drawn) > 1:
            raise torch.OutOfMemoryError(FULL)
        return original(call, latents, *arguments)

    run = new_run(tmp_path, files["sd1"], preview_every=1, batch_size=3)
    session = open_session(run)
    Previews(run, session).student(1)
    whole = np.array(Image.open(run.previews / "step-00000001.png")).astype(int)
    monkeypatch.setattr(evaluate, "integrate", integrate)
    Previews(run, session).student(2)
    assert drawn == [3, 3, 1, 1, 1, 1, 1, 1]
    parts = np.array(Image.open(run.previews / "step-00000002.png")).astype(int)
    assert np.abs(parts - whole).max() <= 1  # a batch rounds otherwise


def test_an_arm_is_drawn_under_a_cap_that_its_images_do_not_fit(files, tmp_path, home):
    run = new_run(tmp_path, files["sd1"], evaluation_prompts=3, resolution="64x64")
    (run.path / "evaluation-prompts.txt").write_text("a tree\na lamp\na road\n")
    session = open_session(run)
    monitor = Monitor(run, session, lambda: False)
    teacher = run_arms(session)[0]
    monitor.material()
    with LiveBytes([]) as whole:
        drawn = monitor.sampler().draw(teacher, monitor.material())
    cap = int(0.6 * whole.peak)
    with Card(cap) as card:
        again = monitor.sampler().draw(teacher, monitor.material())
    assert card.refused and card.peak <= cap
    assert np.abs(np.array(again).astype(int) - np.array(drawn)).max() <= 1


# Decoding


def small_tiles(monkeypatch) -> None:
    monkeypatch.setattr(decoding, "TILE", 4)
    monkeypatch.setattr(decoding, "OVERLAP", 2)
    monkeypatch.setattr(decoding, "PROBE", 2)


class Enlarged(torch.nn.Module):
    """A decoder whose pixels depend on one latent pixel each."""

    def forward(self, latents):
        assert max(latents.shape[-2:]) <= decoding.TILE
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (3, 11), (16, 8)])
def test_tiles_cover_the_whole_and_blend_into_it(size, monkeypatch):
    small_tiles(monkeypatch)
    latents = torch.randn(1, 4, *size)
    with torch.no_grad():
        found = decoding.decode_tiles(Enlarged(), latents, torch.device("cpu"))
    whole = torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)


def limited_decoder(monkeypatch, most: int) -> list[tuple[int, int]]:
    """The decoder on a card runs out of memory beyond so many latent pixels; what it was given."""
    seen: list[tuple[int, int]] = []
    original, card = KLDecoder.forward, {"on": False}

    def note(component, device):
        card["on"] = device.type == "cuda"
        return False

    def forward(self, latents):
        seen.append(tuple(latents.shape[-2:]))
        if card["on"] and latents[0, 0].numel() > most:
            raise torch.OutOfMemoryError(FULL)
        return original(self, latents)

    a_card(monkeypatch, refuses=note)
    monkeypatch.setattr(decoding, "decoder_dtype", lambda device: torch.float32)
    monkeypatch.setattr(decoding, "_decoded", lambda model, latents, device: model(latents))
    monkeypatch.setattr(KLDecoder, "forward", forward)
    monkeypatch.setattr(decoding, "free_memory", lambda device: None)
    return seen


def test_a_whole_image_is_decoded_in_tiles_and_these_on_the_cpu(files, monkeypatch):
    checkpoint = opened(files["sd1"]).load()
    assert checkpoint.decoder is not None
    small_tiles(monkeypatch)
    latents = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    plain = decoding.decode(checkpoint, latents)
    checkpoint.device = CARD

    seen = limited_decoder(monkeypatch, 10**6)
    decoding.decode(checkpoint, latents)
    assert seen == [(6, 6)] * 2

    seen = limited_decoder(monkeypatch, 16)
    with heard() as said:
        tiled = decoding.decode(checkpoint, latents)
    assert seen == [(6, 6)] + [(4, 4)] * 8 and len(said) == 1 and "in tiles" in said[0]
    assert tiled.shape == plain.shape

    seen = limited_decoder(monkeypatch, 4)
    with heard() as said:
        on_cpu = decoding.decode(checkpoint, latents)
    assert seen == [(6, 6), (4, 4), (6, 6), (6, 6)] and "the CPU does it" in said[1]
    assert np.array_equal(on_cpu, plain)


def test_all_images_of_a_set_are_decoded_in_one_way(files, monkeypatch):
    checkpoint = opened(files["sd1"]).load()
    small_tiles(monkeypatch)
    checkpoint.device = CARD
    seen = limited_decoder(monkeypatch, 16)
    monkeypatch.setattr(decoding, "TILE", 6)
    latents = torch.randn(2, 4, 6, 6)
    decoding.decode(checkpoint, latents)
    # nothing to cut: straight to the CPU, from the first image on
    assert seen == [(6, 6)] * 3


def test_what_does_not_fit_is_not_even_tried(files, monkeypatch):
    checkpoint = opened(files["sd1"]).load()
    small_tiles(monkeypatch)
    checkpoint.device = CARD
    seen = limited_decoder(monkeypatch, 10**6)

    @contextlib.contextmanager
    def peak(device):
        yield lambda: 100

    monkeypatch.setattr(decoding, "measured_peak", peak)
    monkeypatch.setattr(decoding, "free_memory", lambda device: 1000)
    with heard() as said:
        decoding.decode(checkpoint, torch.randn(1, 4, 8, 4))
    # 100 bytes for a piece of 2 x 2 are 800 for the whole
    assert seen == [(2, 2), (8, 4)] and not said
    del seen[:]
    monkeypatch.setattr(decoding, "free_memory", lambda device: 900)
    with heard() as said:
        decoding.decode(checkpoint, torch.randn(1, 4, 8, 4))
    assert seen == [(2, 2), (4, 4), (4, 4), (4, 4)] and "in tiles" in said[0]


# The limit of a process


class Cuda:
    """What torch.cuda says of a card of 8 GiB, of which others use 1."""

    def __init__(self) -> None:
        self.allocated, self.reserved, self.share = GIB, 2 * GIB, 1.0

    def mem_get_info(self, device):
        return 5 * GIB, 8 * GIB

    def memory_allocated(self, device):
        return self.allocated

    def memory_reserved(self, device):
        return self.reserved

    def get_device_properties(self, device):
        class Facts:
            total_memory = 8 * GIB

        return Facts

    def set_per_process_memory_fraction(self, share, index):
        self.share = share

    def get_per_process_memory_fraction(self, index):
        return self.share


@pytest.mark.parametrize("platform", ["win32", "linux"])
def test_on_windows_a_process_takes_what_the_card_has_free(platform, monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(sys, "platform", platform)
    assert devices.free_memory(CARD) == 6 * GIB
    with heard() as said:
        limit = devices.limit_to_free(CARD)
    if platform == "linux":
        assert limit is None and cuda.share == 1.0 and not said
        return
    # 5 GiB the driver has and 2 that the allocator holds already, less what kernels take
    assert limit == 7 * GIB - devices.LEFT_TO_DRIVER == int(cuda.share * 8 * GIB)
    assert devices.free_memory(CARD) == limit - GIB
    assert "At most 6.8 GB" in said[0] and "Windows" in said[0]
    assert devices.limit_to_free(CARD) == limit  # again is the same
    assert devices.limit_to_free(torch.device("cpu")) is None
    cuda.allocated = 9 * GIB
    assert devices.free_memory(CARD) == 0

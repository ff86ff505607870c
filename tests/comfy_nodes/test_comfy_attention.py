"""The attention node: ComfyUI's calls in every shape, and what goes to the original function."""

from __future__ import annotations

from typing import Any

import comfy_host
import pytest
import torch
import torch.nn.functional as functional
from comfy_host import Model
from dpdmd_studio.comfy_nodes.sampling import attention as attention_node
from dpdmd_studio.comfy_nodes.sampling.attention import pytorch_override, xformers_override
from dpdmd_studio.core import attention as kernels
from dpdmd_studio.core.recipe.few_step import default_recipe

OVERRIDES = (pytorch_override, xformers_override)
BATCH, HEADS, TOKENS, KEYS, WIDTH = 2, 3, 5, 7, 4
OWN = torch.full((1,), 42.0)


class Original:
    """ComfyUI's own attention: says that it was asked, and with what."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple, dict]] = []

    def __call__(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.asked.append((arguments, options))
        return OWN


@pytest.fixture
def original() -> Original:
    return Original()


@pytest.fixture(autouse=True)
def xformers(monkeypatch):
    """xformers' function as far as its contract goes; counts its calls."""
    calls: list[torch.Tensor | None] = []

    def kernel(q, k, v, attn_bias=None, p=0.0, scale=None):
        calls.append(attn_bias)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=scale)
        return found.transpose(1, 2)

    backend = kernels.Backend("xformers", "tried", kernels._by_xformers(kernel))
    monkeypatch.setattr(kernels, "choose", lambda *_: backend)
    return calls


@pytest.fixture
def qkv() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (TOKENS, KEYS, KEYS)
    return [torch.randn(BATCH, HEADS, n, WIDTH, generator=generator) for n in sizes]


def flat(split: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, heads * width) of (batch, heads, tokens, width)."""
    return torch.cat(split.unbind(1), dim=-1)


def by_hand(q, k, v, mask=None, scale=WIDTH**-0.5) -> torch.Tensor:
    """softmax(q k^T * scale + mask) v of split tensors."""
    scores = q @ k.transpose(-1, -2) * scale
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("override", OVERRIDES)
def test_all_layouts_of_input_and_output(override, original, qkv):
    expected = by_hand(*qkv)
    calls = [
        (map(flat, qkv), {}, flat(expected)),
        (qkv, {"skip_reshape": True}, flat(expected)),
        (map(flat, qkv), {"skip_output_reshape": True}, expected),
        (qkv, {"skip_reshape": True, "skip_output_reshape": True}, expected),
    ]
    for tensors, options, wanted in calls:
        found = override(original, *tensors, HEADS, **options)
        torch.testing.assert_close(found, wanted)
    assert original.asked == []


@pytest.mark.parametrize("override", OVERRIDES)
def test_options_without_a_say_in_the_result_and_the_scale(override, original, qkv, xformers):
    options = {"attn_precision": None, "transformer_options": {}, "_inside_attn_wrapper": True}
    found = override(original, *map(flat, qkv), HEADS, mask=None, scale=0.9, **options)
    torch.testing.assert_close(found, flat(by_hand(*qkv, scale=0.9)))
    assert original.asked == []
    assert len(xformers) == (override is xformers_override)


MASKS = {
    "2-D": (TOKENS, KEYS),
    "3-D": (BATCH, TOKENS, KEYS),
    "3-D of one": (1, TOKENS, KEYS),
    "4-D": (BATCH, HEADS, TOKENS, KEYS),
    "4-D, one head": (BATCH, 1, TOKENS, KEYS),
    "keys alone": (BATCH, 1, KEYS),
}


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("override", OVERRIDES)
def test_masks_are_taken_by_their_meaning(override, shape, boolean, original, qkv):
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mask = mask > -1 if boolean else mask
    wide = mask.unsqueeze(1) if len(shape) == 3 else mask
    found = override(original, *map(flat, qkv), HEADS, mask)
    torch.testing.assert_close(found, flat(by_hand(*qkv, mask=wide)))
    assert original.asked == []


ODD = {
    "one axis": (KEYS,),
    "five axes": (1, 1, 1, TOKENS, KEYS),
    "other keys": (TOKENS, KEYS + 1),
    "other batch": (BATCH + 1, TOKENS, KEYS),
    "batch times heads": (BATCH * HEADS, TOKENS, KEYS),
}


@pytest.mark.parametrize("shape", ODD.values(), ids=ODD)
@pytest.mark.parametrize("override", OVERRIDES)
def test_masks_whose_meaning_is_not_clear_go_to_the_original(override, shape, original, qkv):
    mask, inputs = torch.zeros(shape), [*map(flat, qkv)]
    assert override(original, *inputs, HEADS, mask, attn_precision=None) is OWN
    ((arguments, options),) = original.asked
    assert all(a is b for a, b in zip(arguments, [*inputs, HEADS, mask], strict=True))
    assert options == {"attn_precision": None}


@pytest.mark.parametrize(
    "options",
    [{"enable_gqa": True}, {"window": 3}, {"attn_precision": torch.float32}, {"sinks": None}],
)
@pytest.mark.parametrize("override", OVERRIDES)
def test_options_that_are_not_handled_go_to_the_original(override, options, original, qkv):
    assert override(original, *map(flat, qkv), HEADS, **options) is OWN
    assert original.asked[0][1] == options


@pytest.mark.parametrize("override", OVERRIDES)
def test_positional_arguments_go_on_in_their_order(override, original, qkv):
    mask = torch.zeros(TOKENS, KEYS)
    assert override(original, *qkv, HEADS, mask, None, True) is OWN
    assert original.asked[0][0][5:] == (None, True)


@pytest.mark.parametrize("override", OVERRIDES)
def test_batches_too_large_for_kernels_go_to_the_original(override, original):
    largest = torch.ones(2**15, 1, 2)
    torch.testing.assert_close(override(original, *[largest] * 3, 1), largest)
    assert original.asked == []
    larger = torch.ones(2**15 + 1, 1, 2)
    assert override(original, *[larger] * 3, 1) is OWN


def test_a_call_that_xformers_declines_is_drawn_by_pytorch(original, qkv, monkeypatch):
    def kernel(*_: object, **__: object) -> None:
        raise NotImplementedError("no operator for this mask")

    monkeypatch.setattr(
        kernels, "choose", lambda *_: kernels.Backend("xformers", "", kernels._by_xformers(kernel))
    )
    monkeypatch.setattr(kernels, "_declined", set())
    found = xformers_override(original, *map(flat, qkv), HEADS)
    torch.testing.assert_close(found, flat(by_hand(*qkv)))


# The node


@pytest.fixture
def model(tmp_path, monkeypatch) -> Model:
    comfy_host.install(monkeypatch, tmp_path)
    return Model(default_recipe("sd3", "flow"))


def patched(model: Model, backend: str) -> tuple[Model, str]:
    found = attention_node.Attention().patch(model, backend)
    assert found["ui"]["text"] == [found["result"][1]]
    return found["result"]


def test_only_a_clone_is_patched_and_other_options_stay(model):
    for backend, function in (("xformers", xformers_override), ("pytorch", pytorch_override)):
        clone, text = patched(model, backend)
        options = clone.model_options["transformer_options"]
        assert options == {"kept": 1, "optimized_attention_override": function}
        assert text.startswith({"xformers": "xformers: tried", "pytorch": "PyTorch's"}[backend])
    assert model.model_options == {"transformer_options": {"kept": 1}}


@pytest.mark.parametrize("backend", ["auto", "xformers"])
def test_without_xformers_the_model_passes_through_with_the_reason(model, backend, monkeypatch):
    missing = kernels.Backend(kernels.SDPA, "xformers is not usable: No module named 'xformers'")
    monkeypatch.setattr(kernels, "choose", lambda *_: missing)
    found, text = patched(model, backend)
    assert found is model
    assert text == (
        "Nothing was changed: xformers is not usable: No module named 'xformers'. ComfyUI uses "
        "sub_quad."
    )


def test_the_probe_asks_for_the_networks_own_device_and_dtype(model, monkeypatch):
    asked: list[tuple] = []
    missing = kernels.Backend(kernels.SDPA, "xformers is not usable")
    monkeypatch.setattr(kernels, "choose", lambda *what: asked.append(what) or missing)
    for cast, dtype in ((torch.bfloat16, torch.bfloat16), (None, torch.float32)):
        model.model.manual_cast_dtype = cast
        patched(model, "auto")
        assert asked[-1] == (torch.device("cpu"), dtype)

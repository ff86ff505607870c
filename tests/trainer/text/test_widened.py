"""Wide text encoders keep 16-bit weights and compute in float32."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import checkpoints
import pytest
import torch
from dpdmd_studio.trainer.text.block_by_block import block_by_block
from dpdmd_studio.trainer.text.encoders import encoder_dtype
from dpdmd_studio.trainer.text.widened import in_float32

IDS = torch.tensor([[5, 900, 17, 1, 3, 88]])
MAKERS = {"Qwen3": checkpoints.qwen3, "T5": checkpoints.t5}


def rows(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_the_text_is_that_of_the_same_weights_in_float32(name, dtype):
    narrow = copy.deepcopy(MAKERS[name]()).to(dtype)
    expected = rows(copy.deepcopy(narrow).float())
    off = (rows(narrow) - expected).abs().max() / expected.std()
    widened = in_float32(narrow)
    torch.testing.assert_close(rows(widened), expected, rtol=1e-5, atol=1e-5)
    assert off > 1e-3  # what computing in 16 bits costs even these two layers
    assert {value.dtype for value in widened.state_dict().values()} == {dtype}


@pytest.mark.parametrize("name", MAKERS)
def test_a_block_at_a_time_is_widened_too(name):
    narrow = copy.deepcopy(MAKERS[name]()).bfloat16()
    expected = rows(copy.deepcopy(narrow).float())
    found = rows(block_by_block(in_float32(narrow), torch.device("cpu")))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_narrow_again_after_an_error():
    narrow = in_float32(copy.deepcopy(checkpoints.t5()).bfloat16())
    with pytest.raises(IndexError):
        narrow(torch.tensor([[10**6]]))
    with pytest.raises(RuntimeError):
        narrow.encoder.block[0].layer[1](torch.ones(1, 2, 3))
    assert {value.dtype for value in narrow.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("config", "stored", "expected"),
    [
        ({"hidden_size": 1024}, ["BF16"], torch.float32),
        ({"hidden_size": 2560}, ["BF16"], torch.bfloat16),
        ({"d_model": 4096}, ["F16"], torch.float16),
        ({"d_model": 4096}, ["F16", "F32"], torch.bfloat16),
        ({"d_model": 4096}, ["F8_E4M3"], torch.bfloat16),
    ],
)
def test_wide_ones_keep_the_format_of_their_file(config, stored, expected):
    infos = {str(number): SimpleNamespace(dtype=dtype) for number, dtype in enumerate(stored)}
    component = SimpleNamespace(config=config, weights=SimpleNamespace(infos=infos))
    assert encoder_dtype(component) == expected  # type: ignore[arg-type]

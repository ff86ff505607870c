"""How many operators a call of the network is, counted on fake tensors."""

from __future__ import annotations

import pytest
import torch
from count_memory import model_in, published_model
from count_operators import CAST, Counted
from diffusers.models.normalization import RMSNorm
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.trainer.model.lora_layers import AdaptedConv2d
from torch import nn

STUDENT_OF_SDXL = 4100


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_an_adapter_is_two_products_a_layer_and_few_casts(name, files):
    config = DistillConfig.from_dict({"resolution": "64x64"})
    counted = Counted(model_in(files[name], config, torch.bfloat16))
    teacher, (student, backward) = counted.forward("teacher"), counted.student()
    layers = [module for module in counted.call.network.modules() if hasattr(module, "copies")]
    convolutions = sum(isinstance(layer, AdaptedConv2d) for layer in layers)
    # a linear layer adds its sum within the second product
    casts = student.counts["_foreach_copy_"]
    assert student.total - teacher.total == 2 * len(layers) + convolutions + casts
    assert 1 < casts <= len(layers) / 4
    assert student.counts[CAST] == teacher.counts[CAST]
    kinds = [type(module) for module in counted.call.network.modules()]
    inside = 4 * sum(issubclass(kind, nn.GroupNorm) for kind in kinds) + 2 * kinds.count(RMSNorm)
    # beside what norms need: in and out of the network, what it is told of time and size
    assert teacher.counts[CAST] - inside in range(2, 8)
    # each gradient to its master weight
    assert backward.counts[CAST] - 2 * len(layers) in range(2 * inside)


@pytest.mark.slow
def test_a_student_of_sdxl_is_not_much_more_than_its_teacher():
    counted = Counted(published_model("sdxl", DistillConfig()))
    assert counted.forward("student").total <= STUDENT_OF_SDXL

"""A model family that nobody has: everything a family may bring that those of the product do not.

Statistics of its own for each latent channel, prompts of unequal length without a pooled vector, a
fused layer whose parts differ in size, a text encoder of its own kind, time that runs from 0 to 1
and an output of the other sign, flow shift 6. Registered in `known`, and gone after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import checkpoints
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from dpdmd_studio.core import families
from dpdmd_studio.core.families import BaseModel, Config, Family, TensorSource, VaeFacts
from dpdmd_studio.core.families.base import (
    CostFacts,
    DetectionFacts,
    EncoderGroup,
    HostFacts,
    LayoutFacts,
    LoraFacts,
    LoraTargets,
    Recomputed,
    SamplingFacts,
    SharingFacts,
    Tensors,
    TextFacts,
    count_blocks,
)
from dpdmd_studio.trainer import families as halves
from dpdmd_studio.trainer.loading import encoders as files
from dpdmd_studio.trainer.loading.checkpoint import LoadedCheckpoint
from dpdmd_studio.trainer.loading.weights import Component, Weights
from dpdmd_studio.trainer.model.conditioning import Conditioning, Encoded
from dpdmd_studio.trainer.text import encoders as prompts
from torch import Tensor, nn

NAME, LETTERS = "made_up", "made_up_letters"
DENOISER, ENCODER = "model.diffusion_model.", "text_encoders.letters."
HEADS, KEY_HEADS, HEAD_WIDTH, TEXT_WIDTH = 4, 2, 8, 24
SHARES = (HEADS, KEY_HEADS, KEY_HEADS)
FUSED = ("to_q", "to_k", "to_v")
MEAN, DEVIATION = (0.1, -0.2, 0.3, 0.0), (2.0, 0.5, 1.5, 0.25)


class Attention(nn.Module):
    """Attention over image and text in which two queries share a key."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rows = HEADS * HEAD_WIDTH, KEY_HEADS * HEAD_WIDTH
        self.to_q = nn.Linear(width, rows[0], bias=False)
        self.to_k = nn.Linear(width, rows[1], bias=False)
        self.to_v = nn.Linear(width, rows[1], bias=False)
        self.out = nn.Linear(rows[0], width, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        def split(value: Tensor, heads: int) -> Tensor:
            return value.unflatten(-1, (heads, HEAD_WIDTH)).transpose(1, 2)

        shared = HEADS // KEY_HEADS
        q = split(self.to_q(tokens), HEADS)
        k, v = (split(layer(tokens), KEY_HEADS).repeat_interleave(shared, dim=1)
                for layer in (self.to_k, self.to_v))  # fmt: skip
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(seen.transpose(1, 2).flatten(2))


class MadeUpNetwork(ModelMixin, ConfigMixin):
    """Image and text tokens in one row through blocks of attention."""

    @register_to_config
    def __init__(self, channels: int, width: int, text_width: int, depth: int) -> None:
        super().__init__()
        self.image_in = nn.Linear(channels, width)
        self.text_in = nn.Linear(text_width, width)
        self.time_in = nn.Linear(1, width)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attention": Attention(width)})
                                    for _ in range(depth))  # fmt: skip
        self.image_out = nn.Linear(width, channels)

    def forward(self, image: Tensor, time: Tensor, text: Tensor, lengths: Tensor) -> Tensor:
        tokens = self.image_in(image.flatten(2).transpose(1, 2))
        tokens = tokens + self.time_in(time[:, None, None].to(tokens))
        row = torch.cat([self.text_in(text), tokens], dim=1)
        place = torch.arange(row.shape[1], device=row.device)
        mask = (place < lengths[:, None]) | (place >= text.shape[1])
        for block in self.blocks:
            row = row + block["attention"](row, mask[:, None, None])
        return (
            self.image_out(row[:, text.shape[1] :]).transpose(1, 2).unflatten(2, image.shape[-2:])
        )


def _matches(tensors: Tensors) -> bool:
    return "blocks.0.attention.qkv.weight" in tensors and "image_in.weight" in tensors


def _network_config(tensors: Tensors) -> Config:
    width, channels = tensors["image_in.weight"].shape
    text_width = tensors["text_in.weight"].shape[1]
    depth = count_blocks(tensors, "blocks.")
    return {"channels": channels, "width": width, "text_width": text_width, "depth": depth}


def _tensor_source(parameter_name: str, config: Config) -> TensorSource:
    module, _, leaf = parameter_name.rpartition(".")
    block, _, inner = module.rpartition(".")
    if inner in FUSED:
        return TensorSource(f"{block}.qkv.{leaf}", FUSED.index(inner), shares=SHARES)
    return TensorSource(parameter_name)


def _lora_modules(config: Config, targets: LoraTargets) -> list[str]:
    blocks = [f"blocks.{i}.attention" for i in range(int(str(config["depth"])))]
    return [f"{block}.{name}" for block in blocks for name in (*FUSED, "out")]


FACTS = Family(
    name=NAME,
    label="Made up",
    short_label="Made up",
    detection=DetectionFacts(
        matches=_matches,
        describe=lambda tensors, everything: {"title": "Made up", "prediction": "flow"},
        input_layer="image_in.weight",
    ),
    layout=LayoutFacts(
        network_config=_network_config,
        tensor_source=_tensor_source,
        denoiser_folder="transformer",
        denoiser_title="made-up transformer",
    ),
    sampling=SamplingFacts(
        schedule="flow",
        flow_shift=6.0,
        predictions=("flow",),
        guidance_scale=3.0,
        resolution=64,
        resolution_multiple=8,
    ),
    text=TextFacts(
        groups=(EncoderGroup((LETTERS,)),),
        prefixes={LETTERS: (ENCODER,)},
        context_width="text_width",
        masked=True,
    ),
    vae=VaeFacts(
        scaling_factor=tuple(1 / value for value in DEVIATION),
        shift_factor=MEAN,
        rgb_factors=((0.3, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.3), (0.1, 0.1, 0.1)),
    ),
    lora=LoraFacts(
        modules=_lora_modules,
        module_name=lambda module, config: _tensor_source(
            f"{module}.weight", config
        ).key.removesuffix(".weight"),
        fused=True,
        peft_prefix="transformer.",
        names=r"^blocks_\d+_attention_(qkv|out|to_q)$",
        base_model_version="made_up_1",
        declared=("made_up",),
        architecture=lambda config: "made-up/lora",
    ),
    sharing=SharingFacts(
        labels=("Other",),
        label_note=lambda title: "Nobody lists it.",
        base_model=lambda title: BaseModel("", "Apache-2.0", "apache-2.0", "https://example.org"),
        pipeline="MadeUpPipeline",
        clip_types=("made_up",),
    ),
    hosts=HostFacts("MadeUp", webui_class="MadeUp"),
    cost=CostFacts(
        parameters=10_000,
        packed=0.5,
        staying=100.0,
        buffers=100.0,
        per_rank={"attention": 500, "full": 500},
        per_image={"attention": 10.0, "full": 10.0},
        per_pixel={"attention": 10.0, "full": 10.0},
        recomputed=Recomputed(per_image=10.0, per_pixel=5.0, kept=5.0),
    ),
)


def _call(
    network: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    assert conditioning.pooled is None
    text, lengths = conditioning.context.to(dtype), conditioning.num_tokens()
    return -network(x_t, 1 - timesteps / 1000, text, lengths)


def _combine(config: Config, parts: Mapping[str, Encoded]) -> Conditioning:
    return Conditioning(parts[LETTERS].tokens, repeatable=False, masked=True)


HALF = halves.TorchFamily(facts=FACTS, network=MadeUpNetwork, call=_call, combine=_combine)


class Letters(nn.Module):
    """A text encoder that reads bytes: a prompt has as many tokens as bytes, and an end."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.config = {"hidden_size": width}
        self.token_embedding = nn.Embedding(rows, width)
        self.mix = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.token_embedding(ids)
        return embedded + self.mix(embedded.mean(dim=1, keepdim=True)).tanh()


def _letters(weights: Weights, config: Mapping[str, object]) -> Component:
    rows, width = weights.infos["token_embedding.weight"].shape
    return Component("letters", lambda: Letters(rows, width), weights, TensorSource)


def _plan(kind: str, checkpoint: LoadedCheckpoint, clip_skip: int) -> prompts.EncoderPlan:
    def ids(text: str) -> list[int]:
        return [*text.encode(), 0]

    return prompts.EncoderPlan(
        lambda text: len(ids(text)),
        lambda model, text, before: Encoded(model(torch.tensor([ids(text)])), None),
    )


@contextlib.contextmanager
def known() -> Iterator[None]:
    """The family and its encoder are registered while the block runs."""
    families.register(FACTS)
    halves.register(HALF)
    files.register(LETTERS, files.EncoderKind("letters", _letters))
    prompts.register(LETTERS, _plan)
    try:
        yield
    finally:
        families.FAMILIES.remove(FACTS)
        del families.FAMILY_LABELS[NAME], halves.HALVES[NAME]
        del files.KINDS[LETTERS], prompts.KINDS[LETTERS]


def network(seed: int = 0) -> nn.Module:
    """A tiny random denoiser."""
    made = MadeUpNetwork(channels=4, width=16, text_width=TEXT_WIDTH, depth=2)
    return checkpoints.randomised(made, seed)


def save(path: Path) -> Path:
    """A tiny random checkpoint of the family, in one file."""
    state = network().state_dict()
    for block in {name.rpartition(".to_q.")[0] for name in state if ".to_q." in name}:
        parts = [state.pop(f"{block}.{name}.weight") for name in FUSED]
        state[f"{block}.qkv.weight"] = torch.cat(parts)
    file = {DENOISER + name: value for name, value in state.items()}
    encoder = checkpoints.randomised(Letters(256, TEXT_WIDTH), 1)
    file |= {ENCODER + name: value for name, value in encoder.state_dict().items()}
    vae = checkpoints.vae_names(checkpoints.kl_vae())
    return checkpoints.save(path, file | {f"first_stage_model.{n}": v for n, v in vae.items()})

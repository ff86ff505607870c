"""The shapes teachers' own text encoder: a small CLIP with a few tokens, numbered by itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from ..loading import encoders as files
from ..loading.checkpoint import LoadedCheckpoint
from ..loading.weights import Component, Weights
from ..model.conditioning import Encoded
from ..text import encoders as prompts
from ..text.encoders import EncoderPlan, device_of, first_state
from ..text.syntax import plain_text
from ..text.tokenizers import clip_ids

KIND = "dpdmd"
TOKEN_IDS = "dpdmd_text_encoder.token_ids"
UNKNOWN_ROW, BOS_ROW, EOS_ROW = 0, 1, 2
FACTS = files.ClipFacts("shapes text encoder", head_width=32)


def register() -> None:
    """Make the encoder known to loading and to text; commands do so before they load anything."""
    files.register(KIND, files.EncoderKind(FACTS.title, _component))
    prompts.register(KIND, _plan)


def _component(weights: Weights, config: Mapping[str, object]) -> Component:
    return files.clip_component(FACTS, weights, config, extra=(TOKEN_IDS,))


def _plan(kind: str, checkpoint: LoadedCheckpoint, clip_skip: int) -> EncoderPlan:
    encoder = checkpoint.encoders[kind]
    ids = encoder.weights.read_full(TOKEN_IDS).tolist()
    rows = {int(token): row for row, token in enumerate(ids)}
    length = int(encoder.config["max_position_embeddings"])
    return EncoderPlan(lambda text: length, partial(_encode, rows, length))


def _encode(rows: Mapping[int, int], length: int, model: nn.Module, text: str) -> Encoded:
    found = [rows.get(token, UNKNOWN_ROW) for token in clip_ids(plain_text(text))][: length - 2]
    ids = [BOS_ROW, *found, EOS_ROW]
    ids = torch.tensor([ids + [EOS_ROW] * (length - len(ids))], device=device_of(model))
    last = model(input_ids=ids).last_hidden_state
    return Encoded(last, first_state(last, ids == EOS_ROW))

"""The embedded teachers' own text encoder: a small CLIP with a few tokens, numbered by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..loading import encoders as files
from ..loading.checkpoint import Checkpoint
from ..loading.weights import Component, Weights
from ..model.conditioning import Encoded
from ..text import encoders as prompts
from ..text.encoders import EncoderPlan, device_of, first_state
from ..text.syntax import plain_text
from ..text.tokenizers import clip_ids

KIND = "dpdmd"
TOKEN_IDS = "dpdmd_text_encoder.token_ids"
UNKNOWN_ROW, BOS_ROW, EOS_ROW = 0, 1, 2
FACTS = files.ClipFacts("demo text encoder", head_width=32)
NAMED = 8
"""Unknown words that a note names."""


def register() -> None:
    """Make the encoder known to loading and to text; commands do so before they load anything."""
    files.register(KIND, files.EncoderKind(FACTS.title, _component))
    prompts.register(KIND, _plan)


def _component(weights: Weights, config: Mapping[str, object]) -> Component:
    return files.clip_component(FACTS, weights, config, extra=(TOKEN_IDS,))


def _plan(kind: str, checkpoint: Checkpoint, clip_skip: int) -> EncoderPlan:
    encoder = checkpoint.encoders[kind]
    ids = encoder.weights.read_full(TOKEN_IDS).tolist()
    length = int(encoder.config["max_position_embeddings"])
    table = Table({int(token): row for row, token in enumerate(ids)}, length)
    return EncoderPlan(lambda text: length, table.encode, table.notes)


@dataclass(frozen=True)
class Table:
    """The tokens that an encoder knows by CLIP's number, and how many of them it reads at once."""

    rows: Mapping[int, int]
    length: int

    def encode(self, model: nn.Module, text: str, before: Mapping[str, Encoded]) -> Encoded:
        """What the encoder says of one prompt; unknown tokens have a row of their own."""
        tokens = clip_ids(plain_text(text))[: self.length - 2]
        ids = [BOS_ROW, *(self.rows.get(token, UNKNOWN_ROW) for token in tokens), EOS_ROW]
        ids += [EOS_ROW] * (self.length - len(ids))
        numbers = torch.tensor([ids], device=device_of(model))
        last = model(input_ids=numbers).last_hidden_state
        return Encoded(last, first_state(last, numbers == EOS_ROW))

    def notes(self, texts: Sequence[str]) -> list[str]:
        """Which words mean nothing to this encoder, and how many prompts are too long for it."""
        found = []
        words = dict.fromkeys(w for text in texts for w in re.findall(r"\w+", plain_text(text)))
        unknown = [word for word in words if any(t not in self.rows for t in clip_ids(word))]
        if unknown:
            more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
            found.append(
                "The demo checkpoint does not know these words, and takes each as one that "
                f"means nothing: {', '.join(unknown[:NAMED])}{more}."
            )
        long = [text for text in texts if len(clip_ids(plain_text(text))) > self.length - 2]
        if long:
            found.append(
                f"{len(long)} of {len(texts)} prompts are longer than the {self.length - 2} tokens "
                f"that the demo checkpoint reads, and end there; the first is {long[0][:60]!r}."
            )
        return found

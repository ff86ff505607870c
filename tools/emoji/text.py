"""The teachers' own text model: a small CLIP over the tokens that captions have."""

from __future__ import annotations

import torch
from dpdmd_studio.trainer.toys.emoji import captions
from torch import Tensor, nn

UNKNOWN, BEGIN, END = 0, 1, 2
BEGIN_ID, END_ID = 49406, 49407
WIDTH, LAYERS, LENGTH = 128, 2, 16


def token_ids() -> list[int]:
    """CLIP's ids of every token that a caption can have, sorted; rows 0 to 2 stand before them."""
    from dpdmd_studio.trainer.text.tokenizers import clip_ids

    here, found = captions.world(), set(clip_ids(","))
    texts = [*here.nouns, *here.styles, *here.backgrounds, *captions.SIZES]
    for text in [*texts, *captions.PLACES.values(), "on", "background"]:
        found |= set(clip_ids(text))
    return sorted(found)


class Rows:
    """Captions to rows of the text model's table."""

    def __init__(self) -> None:
        self.ids = token_ids()
        self.row = {token: 3 + index for index, token in enumerate(self.ids)}
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        """Row numbers, shape (N, LENGTH): begin, tokens, ends."""
        return torch.tensor([self._of(text) for text in texts])

    def _of(self, text: str) -> list[int]:
        from dpdmd_studio.trainer.text.tokenizers import clip_ids

        if text not in self._known:
            rows = [self.row.get(token, UNKNOWN) for token in clip_ids(text)][: LENGTH - 2]
            self._known[text] = [BEGIN, *rows] + [END] * (LENGTH - 1 - len(rows))
        return self._known[text]


def model(vocabulary: int) -> nn.Module:
    """A small CLIP text model that is not trained yet."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=WIDTH // 32,
            max_position_embeddings=LENGTH, hidden_act="quick_gelu",
            bos_token_id=BEGIN, eos_token_id=END, pad_token_id=END, attn_implementation="eager",
        )
    )  # fmt: skip


def encode(text_model: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Context (N, L, D) after the final norm, and its row at the first end token (N, D)."""
    context = text_model(input_ids=rows).last_hidden_state
    first_end = (rows == END).int().argmax(dim=1)
    return context, context[torch.arange(len(rows), device=rows.device), first_end]

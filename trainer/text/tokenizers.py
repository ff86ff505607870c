"""Tokens of prompts, chunked and weighted as in hosts, from vocabularies of this package."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import CLIPTokenizer

from ...core.errors import CheckpointError
from .syntax import Segment, weighted_text

VOCABULARIES = Path(__file__).parents[1] / "assets" / "vocabularies"
CLIP_FILE, T5_FILE = VOCABULARIES / "clip-merges.txt.gz", VOCABULARIES / "t5-tokenizer.json.gz"
QWEN_FILE = VOCABULARIES / "qwen-merges.txt.gz"
CLIP_SIZE, T5_SIZE, QWEN_SIZE = 49408, 32100, 151643
BOS, EOS = 49406, 49407
T5_EOS, T5_PAD = 1, 0
T5_MIN_LENGTH = 77
CHUNK = 75
# How Qwen cuts text into words, and its tokens behind those of the merges, in their order.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_NAMED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
QWEN_PAD = QWEN_SIZE
ESCAPED_ROUND = re.compile(r"\\([()])")
COMMA_BACKTRACK = 20
"""Hosts move up to this many tokens after the last comma to the next chunk."""


@dataclass(frozen=True)
class Chunk:
    """Token ids and their weights, both of the encoder's fixed length."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def _unpacked(path: Path) -> str:
    """The text of a vocabulary that ships with the project.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8")
    except FileNotFoundError as error:
        raise _broken(path, "missing") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _broken(path, f"damaged ({error})") from error


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"The vocabulary {path} is {what}. It is part of DP-DMD Studio: install that anew."
    )


@lru_cache(maxsize=1)
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, 49408 tokens."""
    vocabulary, merges = _clip_tables(CLIP_FILE)
    with tempfile.TemporaryDirectory(prefix="dpdmd-clip-") as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        merge_lines = "#version: 0.2\n" + "\n".join(merges) + "\n"
        (folder / "merges.txt").write_text(merge_lines, encoding="utf-8")
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    # transformers makes a two-token tokenizer without complaint when it misses its files
    assert len(tokenizer) == CLIP_SIZE, f"CLIP vocabulary of {len(tokenizer)} tokens"
    return tokenizer


def _clip_tables(path: Path) -> tuple[dict[str, int], list[str]]:
    """(token -> id, merges) of a file with one merge a line."""
    merges = _unpacked(path).removesuffix("\n").split("\n")
    letters = _byte_letters()
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    if len(tokens) != CLIP_SIZE:
        raise _broken(path, f"damaged ({len(tokens)} tokens, expected {CLIP_SIZE})")
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """A printable letter for each byte value, in the order of byte-level BPE vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


@lru_cache(maxsize=1)
def t5_tokenizer() -> Tokenizer:
    """T5's tokenizer, 32100 tokens."""
    text = _unpacked(T5_FILE)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise _broken(T5_FILE, f"damaged ({error})") from error
    assert tokenizer.get_vocab_size() == T5_SIZE, f"T5 vocabulary of {tokenizer.get_vocab_size()}"
    return tokenizer


@lru_cache(maxsize=1)
def qwen_tokenizer() -> Tokenizer:
    """The tokenizer of Qwen2 to Qwen3: 151,643 tokens of text, then those with a name."""
    merges = _unpacked(QWEN_FILE).removesuffix("\n").split("\n")
    tokens = _byte_letters() + [merge.replace(" ", "") for merge in merges]
    if len(tokens) != QWEN_SIZE:
        raise _broken(QWEN_FILE, f"damaged ({len(tokens)} tokens, expected {QWEN_SIZE})")
    pairs = [(merge.split(" ")[0], merge.split(" ")[-1]) for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in QWEN_NAMED])
    return tokenizer


def qwen_ids(prompt: str, template: str = "") -> list[int]:
    """Qwen's token ids of a prompt, its weights left out; the token of padding for an empty one.

    Args:
        template: of a chat, "{}" for the prompt, whose brackets are then letters, escaped or not.
    """
    if template:
        text = template.format(ESCAPED_ROUND.sub(r"\1", prompt))
        return qwen_tokenizer().encode(text, add_special_tokens=False).ids
    texts = [segment.text for segment in weighted_text(prompt)]
    ids = [i for text in texts for i in qwen_tokenizer().encode(text, add_special_tokens=False).ids]
    return ids or [QWEN_PAD]


def clip_ids(text: str) -> list[int]:
    """CLIP token ids of plain text, without start and end."""
    return clip_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"]


def clip_chunks(prompt: str, pad: int = EOS) -> list[Chunk]:
    """The prompt in chunks of 77: start, up to 75 tokens, end, padding.

    Args:
        prompt: may hold weights, escapes and BREAK.
        pad: fills up after the end token: the end token itself for CLIP-L, 0 for CLIP-G.
    """
    chunks = []
    for tokens in _split(_clip_tokens(weighted_text(prompt))):
        filling = CHUNK - len(tokens)
        ids = [BOS, *(token for token, _ in tokens), EOS, *[pad] * filling]
        weights = [1.0, *(weight for _, weight in tokens), 1.0, *[1.0] * filling]
        chunks.append(Chunk(tuple(ids), tuple(weights)))
    return chunks


Weighted = tuple[int, float]


def _clip_tokens(segments: list[Segment]) -> Iterator[Weighted | None]:
    """(id, weight) of every token; None for a BREAK."""
    for segment in segments:
        if segment.is_break:
            yield None
        else:
            yield from ((token, segment.weight) for token in clip_ids(segment.text))


def _split(tokens: Iterator[Weighted | None]) -> list[list[Weighted]]:
    """Chunks of at most 75 tokens, broken at the last comma where one is near."""
    (comma,) = clip_ids(",")
    chunks: list[list[Weighted]] = [[]]
    for token in tokens:
        if token is None:
            chunks.append([])
            continue
        if len(chunks[-1]) == CHUNK:
            chunks.append(_after_comma(chunks[-1], token, comma))
        chunks[-1].append(token)
    return chunks


def _after_comma(chunk: list[Weighted], following: Weighted, comma: int) -> list[Weighted]:
    """Take what stands behind the chunk's last comma off it, if that is little."""
    commas = [index for index, (token, _) in enumerate(chunk) if token == comma]
    if not commas or following[0] == comma or CHUNK - commas[-1] > COMMA_BACKTRACK:
        return []
    moved = chunk[commas[-1] + 1 :]
    del chunk[commas[-1] + 1 :]
    return moved


def t5_chunk(prompt: str, least: int = T5_MIN_LENGTH) -> Chunk:
    """The prompt as one run of T5 tokens with its end token, padded to at least `least`."""
    tokens: list[Weighted] = []
    for segment in weighted_text(prompt):
        ids = t5_tokenizer().encode(segment.text, add_special_tokens=False).ids
        tokens += [(token, segment.weight) for token in ids]
    tokens.append((T5_EOS, 1.0))
    tokens += [(T5_PAD, 1.0)] * (least - len(tokens))
    return Chunk(tuple(token for token, _ in tokens), tuple(weight for _, weight in tokens))

"""Prompts: weights, tokens, chunks, and what each family's encoders make of them."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import time

import checkpoints
import pytest
import torch
from dpdmd_studio.core.errors import CheckpointError, PromptError, RunError, SettingsError
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from dpdmd_studio.trainer.text import cache as prompt_cache
from dpdmd_studio.trainer.text import tokenizers
from dpdmd_studio.trainer.text.cache import encode_prompts, estimate_cache_bytes
from dpdmd_studio.trainer.text.encoders import weighted
from dpdmd_studio.trainer.text.syntax import parse_prompt, plain_text
from dpdmd_studio.trainer.text.tokenizers import EOS, clip_chunks, clip_ids, t5_chunk
from dpdmd_studio.trainer.toys import encoder as shapes_encoder
from tiny_runs import heard
from transformers import CLIPTextConfig, CLIPTextModel

CAT = [320, 1125, 539, 320, 2368]
CLIP_SHA256 = "88090f1273a5322f16b5289e86fc42c42b1eb43da00372fa2ae7fdbde1aaf5dd"
T5_SHA256 = "f5dfec163765e18e270537fe896c49f5fad74db1525641d9b255a3008b999596"
TOKENS = [
    (
        "naïve café, ½ été",
        [1097, 35689, 563, 15304, 267, 33613, 3459, 39694],
        [3, 29, 9, 2, 162, 11949, 6, 209, 2, 357, 1366],
    ),
    ("日本の猫", [39121, 44353, 21575, 163, 234, 360], [3, 2]),
    (
        "кошка на крыше",
        [
            27152,
            13506,
            141,
            230,
            27152,
            27080,
            22705,
            27080,
            27152,
            16370,
            45001,
            141,
            230,
            140,
            369,
        ],
        [3, 12377, 2, 12095, 3, 8194, 3, 6652, 8452, 2, 1757],
    ),
    ("고양이", [36216, 254, 31625, 239, 34746], [3, 2]),
    ("قطة", [27585, 32050, 20915], [3, 2]),
    (
        "😀 1girl's cat_x 3.14",
        [7334, 272, 1611, 568, 2368, 318, 343, 274, 269, 272, 275],
        [3, 2, 209, 18722, 31, 7, 1712, 834, 226, 1877, 2534],
    ),
    (
        "ﬁne  \uff21\uff22\uff23",
        [171, 105, 223, 1422, 171, 121, 223, 171, 121, 224, 171, 121, 481],
        [1399, 14213],
    ),
]


SYNTAX = {
    "plain": [("plain", 1.0)],
    "a (b) c": [("a ", 1.0), ("b", 1.1), (" c", 1.0)],
    "((a)) [b]": [("a", 1.21), (" ", 1.0), ("b", 1 / 1.1)],
    "(a, b:1.5)": [("a, b", 1.5)],
    "(a (b:2):0.5)": [("a ", 0.5), ("b", 1.0)],
    r"\(a\) \[b\] c\\": [("(a) [b] c\\", 1.0)],
    "(open [inner": [("open ", 1.1), ("inner", 1.0)],
    "closed) too]": [("closed) too]", 1.0)],
    "a:b (c:d)": [("a:b ", 1.0), ("c:d", 1.1)],
    "": [("", 1.0)],
}


@pytest.mark.parametrize("prompt", SYNTAX)
def test_weights_are_read_as_hosts_read_them(prompt):
    found = parse_prompt(prompt)
    assert [segment.text for segment in found] == [text for text, _ in SYNTAX[prompt]]
    weights = [segment.weight for segment in found]
    assert weights == pytest.approx([weight for _, weight in SYNTAX[prompt]])


def test_break_is_a_word_of_its_own():
    assert [segment.is_break for segment in parse_prompt("a BREAK b BREAKFAST")] == [
        False, True, False,
    ]  # fmt: skip
    assert plain_text("a (b:1.2) BREAK [c]") == "a b c"


def test_known_prompts_have_their_known_tokens():
    assert clip_ids("a photo of a cat") == CAT
    assert t5_chunk("a photo of a cat").ids[:8] == (3, 9, 1202, 13, 3, 9, 1712, 1)
    assert len(t5_chunk("").ids) == 77 and t5_chunk("").ids[0] == 1


def test_a_chunk_is_start_tokens_end_and_padding_with_weights_beside():
    (chunk,) = clip_chunks("a photo of a (cat:1.5)")
    assert chunk.ids == (49406, *CAT, *[EOS] * 71)
    assert chunk.weights == (1.0, 1.0, 1.0, 1.0, 1.0, 1.5, *[1.0] * 71)
    (padded,) = clip_chunks("a photo of a cat", pad=0)
    assert padded.ids == (49406, *CAT, EOS, *[0] * 70)


def test_long_prompts_and_break_make_chunks_and_commas_are_kept_together():
    def lengths(prompt: str) -> list[int]:
        return [len(list(itertools.takewhile(lambda i: i != EOS, c.ids[1:])))
                for c in clip_chunks(prompt)]  # fmt: skip

    assert lengths("cat " * 75) == [75]
    assert lengths("cat " * 76) == [75, 1]
    assert lengths("cat BREAK cat cat") == [1, 2]
    assert lengths("cat " * 60 + ", " + "dog " * 30) == [61, 30]  # moved behind the comma
    assert lengths("cat " * 40 + ", " + "dog " * 50) == [75, 16]  # too far back to move


DAMAGES = {"missing": None, "damaged": b"no gzip", "cut off": b"\x1f\x8b\x08", "empty": b""}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["CLIP_FILE", "T5_FILE"])
def test_a_vocabulary_that_is_not_whole_is_named(tmp_path, monkeypatch, damage, kind):
    path, content = tmp_path / "words.gz", DAMAGES[damage]
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(tokenizers, kind, path)
    make = {"CLIP_FILE": tokenizers.clip_tokenizer, "T5_FILE": tokenizers.t5_tokenizer}[kind]
    with pytest.raises(CheckpointError, match=r"words\.gz is .*install that anew"):
        make.__wrapped__()


def test_every_token_has_its_id():
    """What the published files gave: CLIP's tokens, and T5's way of cutting text."""
    clip = sorted(tokenizers.clip_tokenizer().get_vocab().items())
    assert hashlib.sha256(json.dumps(clip).encode()).hexdigest() == CLIP_SHA256
    t5 = gzip.decompress(tokenizers.T5_FILE.read_bytes())
    assert hashlib.sha256(t5).hexdigest() == T5_SHA256
    for text, clip_expected, t5_expected in TOKENS:
        assert clip_ids(text) == clip_expected
        assert tokenizers.t5_tokenizer().encode(text, add_special_tokens=False).ids == t5_expected


def test_weighting_keeps_the_mean_and_leaves_unweighted_prompts_alone():
    tokens = torch.rand(2, 77, 8) + 0.5
    assert weighted(tokens, torch.ones(2, 77)) is tokens
    weights = torch.ones(2, 77)
    weights[0, 3] = 1.7
    changed = weighted(tokens, weights)
    torch.testing.assert_close(changed.mean(), tokens.mean())
    ratio = (changed / tokens).mean(dim=-1)
    torch.testing.assert_close(ratio[0, 3] / ratio[1, 5], torch.tensor(1.7))


def load(tmp_path, tiny, state=None, metadata=None):
    """A checkpoint of these modules in fp32."""
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, state or checkpoints.file_state(tiny), metadata=metadata)
    return open_checkpoint(path, dtype=torch.float32, device="cpu").load()


def encode(checkpoint, prompts, folder, **options):
    """The prompts' conditioning."""
    found = encode_prompts(checkpoint, prompts, cache_folder=folder, **options)
    return [found[prompt] for prompt in prompts]


def plain_call(model, prompt: str, pad: int = EOS):
    """What transformers says of one short prompt."""
    ids = [49406, *clip_ids(prompt), EOS]
    ids = torch.tensor([ids + [pad] * (77 - len(ids))])
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True)


def test_sd1_takes_the_last_layer_normed_and_clip_skip_counts_from_one(tmp_path):
    tiny = checkpoints.sd1()
    checkpoint, model = load(tmp_path, tiny), tiny.encoders["clip_l"]
    expected = plain_call(model, "a red cat")
    (found,) = encode(checkpoint, ["a red cat"], tmp_path)
    assert torch.equal(found.context, expected.last_hidden_state) and found.pooled is None
    (skipped,) = encode(checkpoint, ["a red cat"], tmp_path, clip_skip=2)
    norm = dict(model.named_modules())
    norm = norm.get("final_layer_norm") or norm["text_model.final_layer_norm"]
    assert torch.equal(skipped.context, norm(expected.hidden_states[-2]))
    with pytest.raises(SettingsError, match=r"clip skip 4 .* has 3 layers"):
        encode(checkpoint, ["a"], tmp_path, clip_skip=4)


def test_sdxl_joins_both_penultimate_layers_and_pools_the_second(tmp_path):
    tiny = checkpoints.sdxl()
    (found,) = encode(load(tmp_path, tiny), ["a red cat"], tmp_path)
    first = plain_call(tiny.encoders["clip_l"], "a red cat")
    second = plain_call(tiny.encoders["clip_g"], "a red cat", pad=0)
    both = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    assert torch.equal(found.context, both)
    assert torch.equal(found.pooled, second.text_embeds)


def test_sd3_pads_clip_to_the_text_width_and_puts_t5_behind(tmp_path):
    tiny = checkpoints.sd3()
    (found,) = encode(load(tmp_path, tiny), ["a red cat"], tmp_path)
    first = plain_call(tiny.encoders["clip_l"], "a red cat")
    second = plain_call(tiny.encoders["clip_g"], "a red cat", pad=0)
    ids = torch.tensor([t5_chunk("a red cat").ids])
    with torch.no_grad():
        behind = tiny.encoders["t5xxl"](input_ids=ids).last_hidden_state
    assert found.context.shape == (1, 154, 128)
    assert torch.equal(found.context[:, :77, :32], first.hidden_states[-2])
    assert torch.equal(found.context[:, :77, 32:96], second.hidden_states[-2])
    assert not found.context[:, :77, 96:].any()
    assert torch.equal(found.context[:, 77:], behind)
    assert torch.equal(found.pooled, torch.cat([first.pooler_output, second.text_embeds], dim=-1))


def test_sd3_without_some_encoders_has_zeros_in_their_place(tmp_path):
    state = checkpoints.file_state(checkpoints.sd3())
    only_g = {
        key: value for key, value in state.items()
        if not key.startswith(("text_encoders.clip_l", "text_encoders.t5xxl"))
    }  # fmt: skip
    full_folder, part_folder = tmp_path / "full", tmp_path / "part"
    full_folder.mkdir(), part_folder.mkdir()
    (full,) = encode(load(full_folder, None, state), ["a cat"], tmp_path)
    (part,) = encode(load(part_folder, None, only_g), ["a cat"], tmp_path)
    assert part.context.shape == (1, 77, 128)
    assert not part.context[..., :32].any() and not part.pooled[:, :32].any()
    assert torch.equal(part.context[..., 32:], full.context[:, :77, 32:])
    assert torch.equal(part.pooled[:, 32:], full.pooled[:, 32:])


def test_the_shapes_encoder_maps_clip_tokens_to_its_own_rows(tmp_path):
    config = CLIPTextConfig(
        vocab_size=6, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    encoder = checkpoints.randomised(CLIPTextModel(config), 5)
    (red,), (cat,) = clip_ids("red"), clip_ids("cat")
    place = "dpdmd_text_encoder.transformer."
    state = {
        key: value for key, value in checkpoints.file_state(checkpoints.sd3()).items()
        if not key.startswith("text_encoders.")
    }  # fmt: skip
    state |= {place + key: value for key, value in checkpoints.clip_names(encoder).items()}
    state["dpdmd_text_encoder.token_ids"] = torch.tensor([0, 49406, 49407, red, cat, 7])
    stated = {"dpdmd.shapes": json.dumps({"guidance_scale": 2.0})}
    unknown = {"dpdmd.shapes": json.dumps({"text_encoder": "runes"})}
    with pytest.raises(CheckpointError, match="the kind 'runes', which is not known here"):
        load(tmp_path, None, state, unknown)
    shapes_encoder.register()
    checkpoint = load(tmp_path, None, state, stated)
    found = encode(checkpoint, ["a red cat", "cat " * 20], tmp_path)
    for conditioning, ids in zip(found, ([1, 0, 3, 4, 2, 2, 2, 2], [1, *[4] * 6, 2]), strict=True):
        with torch.no_grad():
            last = encoder(input_ids=torch.tensor([ids])).last_hidden_state
        assert torch.equal(conditioning.context[..., :64], last)
        assert not conditioning.context[..., 64:].any()
        assert torch.equal(conditioning.pooled[:, :64], last[:, ids.index(2)])
        assert conditioning.pooled.shape == (1, 96) and not conditioning.pooled[:, 64:].any()


def test_the_demo_encoder_names_the_words_it_does_not_know_and_the_prompts_too_long_for_it():
    known = clip_ids("red cat on blue ,")
    table = shapes_encoder.Table({token: row for row, token in enumerate(known, 3)}, length=8)
    assert table.notes(["red cat", "(RED:1.2) cat, on blue"]) == []
    (note,) = table.notes(["flying cat", "xylophone, flying"])
    assert note.endswith("means nothing: flying, xylophone.")
    note = table.notes([f"word{letter}" for letter in "abcdefghijk"])[0]
    assert note.endswith(" and 3 more.")
    (note,) = table.notes(["cat", "cat " * 7])
    assert note.startswith("1 of 2 prompts are longer than the 6 tokens") and "'cat cat" in note


def test_cached_prompts_are_equal_and_load_no_encoder(tmp_path, monkeypatch):
    checkpoint = load(tmp_path, checkpoints.sdxl())
    prompts = ["a cat", "", "a (dog:1.3)", "a cat"]
    cache = tmp_path / "cache"
    with heard() as lines:
        found = encode_prompts(checkpoint, prompts, cache_folder=cache)
    first = [found[prompt] for prompt in prompts]
    assert "Encoding 3 of 3 prompts" in lines[0] and len(list(cache.iterdir())) == 3
    stored = sum(item.context.nbytes + item.pooled.nbytes for item in first[:3])
    estimate = estimate_cache_bytes(checkpoint, prompts[:3])
    assert estimate == pytest.approx(stored, rel=0.01)
    monkeypatch.setattr(prompt_cache, "_encode", lambda *_: pytest.fail("encoded again"))
    again = encode(checkpoint, prompts, cache)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.context, other.context) and torch.equal(one.pooled, other.pooled)


def test_prompts_beyond_the_room_in_memory_are_read_when_asked_for(tmp_path, monkeypatch):
    checkpoint, prompts = load(tmp_path, checkpoints.sd1()), ["a cat", "a dog"]
    kept = encode(checkpoint, prompts, tmp_path / "cache")
    monkeypatch.setattr(prompt_cache, "KEPT_BYTES", kept[0].num_bytes)
    found = encode_prompts(checkpoint, prompts, cache_folder=tmp_path / "cache")
    for text, one in zip(prompts, kept, strict=True):
        assert torch.equal(found[text].context, one.context)
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    assert torch.equal(found["a cat"].context, kept[0].context)
    with pytest.raises(RunError, match="encoded anew"):
        found["a dog"]


def test_a_damaged_cache_entry_and_another_encoder_are_encoded_anew(tmp_path):
    tiny = checkpoints.sd1()
    checkpoint, cache = load(tmp_path, tiny), tmp_path / "cache"
    (first,) = encode(checkpoint, ["a cat"], cache)
    (entry,) = cache.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    (again,) = encode(checkpoint, ["a cat"], cache)
    assert torch.equal(first.context, again.context)
    state = checkpoints.file_state(tiny)
    key = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    other = load(other_folder, None, state | {key: 2 * state[key]})
    (changed,) = encode(other, ["a cat"], cache)
    torch.testing.assert_close(changed.context, first.context + state[key])
    assert len(list(cache.iterdir())) == 2


def test_ten_thousand_brackets_are_read_at_once_and_refused_by_encoders():
    hard = ["(a" * 5000, "([" * 2500 + "a)]" * 1600, "(" * 5000 + "]" * 5000, ":" + "1" * 9999]
    begin = time.process_time()
    for prompt in hard:
        parse_prompt(prompt)
    assert time.process_time() - begin < 2
    for prompt in (hard[0], "(a:1" + "0" * 400 + ")", "((a:-1" + "0" * 400 + "):0)"):
        for read in (clip_chunks, t5_chunk):
            with pytest.raises(PromptError, match="weights go up to 1,000,000"):
                read(prompt)
    weights = [segment.weight for segment in parse_prompt("[(a] (b:2) (c")]
    assert weights == [1 / 1.1 * 1.1, 1.1, 2 * 1.1, 1.1, 1.1 * 1.1]

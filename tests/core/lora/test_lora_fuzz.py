"""Headers of LoRAs made up at random: each is read, or refused by all readers with the same words.

python -m tests... is not needed: `fuzz(range(10**6), folder)` runs as long as one likes.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import struct

from dpdmd_studio.app.library.inspect import format_text, inspect
from dpdmd_studio.core import families
from dpdmd_studio.core.errors import LoraError, NonFiniteError
from dpdmd_studio.core.files.tensor_file import DTYPE_BITS
from dpdmd_studio.core.lora.file import LoraFile, open_lora
from dpdmd_studio.core.lora.text_encoders import text_encoder_parts

STEMS = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "unet.mid_block.x",
    "transformer.joint_blocks.0.x_block.attn.qkv.1",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "clip_g.text_projection",
    "t5.encoder.block.0",
    "base_model.model.text_model.x",
    "",
)
DOWN, UP, CORE = (2, 4), (4, 2), (2, 2, 3, 3)
PAIR = {".lora_down.weight": DOWN, ".lora_up.weight": UP}
LOHA = {f".hada_w{n}_{half}": size for n in "12" for half, size in (("a", UP), ("b", DOWN))}
LOKR = {".lokr_w1": (2, 2), ".lokr_w2_a": UP, ".lokr_w2_b": DOWN}
GROUPS = (
    PAIR | {".alpha": ()},
    {".lora_A.weight": DOWN, ".lora_B.weight": UP},
    {".lora_A.x.weight": DOWN, ".lora_B.x.weight": UP},
    LOHA | {".alpha": ()},
    dict.fromkeys(LOHA, DOWN) | {".hada_t1": CORE, ".hada_t2": CORE, ".alpha": ()},
    LOKR | {".alpha": ()},
    PAIR | {".lora_mid.weight": CORE},
    {".lokr_w1": (2, 2), ".lokr_w2": (4, 4, 3, 3), ".alpha": ()},
)
MORE = (".dora_scale", ".diff", ".weight", ".on_input", ".scale_weight", ".clip_l",
        ".lora_A.y.weight", ".lokr_w1_b", ".lora_mid.weight", ".hada_t1")  # fmt: skip
FLOATS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64")
METADATA = (
    {}, {"lora_adapter_metadata": "{}"}, {"lora_adapter_metadata": "[[[["},
    {"lora_adapter_metadata": '{"unet.lora_alpha": 4}'}, {"ss_base_model_version": "sdxl_x"},
)  # fmt: skip


def made_up(seed: int) -> bytes:
    """A safetensors file: mostly plausible, with a few things at odds."""
    chance = random.Random(seed)
    table, body = {}, b""
    for stem in chance.sample(STEMS, chance.randint(1, 2)):
        shapes = dict(chance.choice(GROUPS))
        if chance.random() < 0.1:
            shapes[chance.choice(MORE)] = DOWN
        if chance.random() < 0.1:
            shapes.pop(chance.choice(list(shapes)))
        for ending, usual in shapes.items():
            shape = usual
            if chance.random() < 0.05:
                shape = tuple(chance.choices((0, 1, 2, 4), k=chance.randint(0, 5)))
            dtype = chance.choice(FLOATS if chance.random() < 0.99 else tuple(DTYPE_BITS))
            size = -(-math.prod(shape) * DTYPE_BITS[dtype] // 8)
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + size]}
            table[stem + ending] = entry
            filled = (b"<" * size, bytes(size), chance.randbytes(size))
            body += chance.choices(filled, (8, 1, 1))[0]
    table["__metadata__"] = chance.choice(METADATA)
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + body


def opened(path) -> tuple[LoraFile | None, str | None]:
    """(the file, None), or (None, why not)."""
    try:
        return open_lora(path), None
    except LoraError as error:
        return None, str(error)


def fuzz(seeds, folder) -> dict[str, int]:
    """How many of these files were read, refused, and without numbers."""
    path, counts = folder / "x.safetensors", {"read": 0, "refused": 0, "no numbers": 0}
    for seed in seeds:
        path.write_bytes(made_up(seed))
        facts = inspect(path, hashed=False)
        format_text(facts)
        lora, refusal = opened(path)
        if facts["kind"] == "LoRA":
            assert facts.get("problem") == refusal, seed
        if lora is None:
            counts["refused"] += 1
            continue
        for family in families.FAMILIES:
            with contextlib.suppress(LoraError):
                text_encoder_parts(lora, family)
        try:
            for module in lora.modules.values():
                pair = lora.pair(module)
                product = pair.up.double().flatten(1) @ pair.down.double().flatten(1)
                assert math.isfinite(pair.scale) and product.ndim == 2, seed
            counts["read"] += 1
        except NonFiniteError:
            counts["no numbers"] += 1
    return counts


def test_no_made_up_file_ends_in_a_foreign_error_or_in_two_answers(tmp_path):
    counts = fuzz(range(500), tmp_path)
    assert min(counts.values()) > 10, counts

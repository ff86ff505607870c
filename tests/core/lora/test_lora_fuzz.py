"""LoRA files made up at random: each is read, or refused by all readers with the same words."""

from __future__ import annotations

import random
from collections import Counter

import fuzzing


def test_no_made_up_file_ends_in_a_foreign_error_or_in_two_answers(tmp_path):
    path, counts = tmp_path / "x.safetensors", Counter()
    for seed in range(500):
        path.write_bytes(fuzzing.made_up(random.Random(seed)))
        counts[fuzzing.read_as_lora(path)] += 1
    assert len(counts) == 3 and min(counts.values()) > 10, counts

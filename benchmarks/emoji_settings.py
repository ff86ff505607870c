"""How settings of full-size runs interact, on both emoji teachers: one factor at a time.

    python benchmarks/emoji_settings.py --teacher sd3 --folder F --seeds 0 1 [--arms NAME ...]
    python benchmarks/emoji_students.py table --folder F

Every arm is the general default of settings (`--base full-size` of emoji_students.py), or the
demo's where its name says so, with what is named here; counted on the tuning captions and seeds, or
with --held-out on those that nothing has seen. A run that is in the folder is not made again. One
folder is one teacher's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import emoji_students
import torch

BEFORE = {"batch_size": 1, "steps": 1000, "fake_updates": 5, "teacher_steps": 28}
"""The defaults until these were compared; "cheap" has those that came of it."""
FOUR = BEFORE | {"batch_size": 4, "steps": 400}
CHEAP = FOUR | {"fake_updates": 2, "teacher_steps": 12}
SIXTEEN = CHEAP | {"batch_size": 16, "steps": 100}
EIGHT = CHEAP | {"batch_size": 8, "steps": 200}
ARMS: dict[str, dict[str, object]] = {
    "one": BEFORE,
    "cheap": CHEAP,
    "four, as many samples": FOUR | {"steps": 250},
    "four": FOUR,
    "four, fake 2": FOUR | {"fake_updates": 2},
    "four, teacher 12": FOUR | {"teacher_steps": 12},
    "cheap, half the rate": CHEAP | {"student_lr": 5e-4, "fake_lr": 5e-4},
    "cheap, twice the rate": CHEAP | {"student_lr": 2e-3, "fake_lr": 2e-3},
    "cheap, average .98": CHEAP | {"ema_decay": 0.98},
    "cheap, two anchors": CHEAP | {"num_anchored_steps": 2},
    "cheap, sixteen": SIXTEEN,
    "sixteen, eight": EIGHT,
    "sixteen, half more of the rate": SIXTEEN | {"student_lr": 1.5e-3, "fake_lr": 1.5e-3},
    "sixteen, two anchors": SIXTEEN | {"num_anchored_steps": 2},
    "sixteen, head start": SIXTEEN | {"fake_head_start": 20},
    "sixteen, high noise first": SIXTEEN | {"renoise_anneal_steps": 25},
    "sixteen, real score unguided above 800": SIXTEEN | {"real_guidance_high": 800},
    "sixteen, lambda .2": SIXTEEN | {"diversity_weight": 0.2},
    "sixteen, lambda .5": SIXTEEN | {"diversity_weight": 0.5},
    "eight, lambda .2": EIGHT | {"diversity_weight": 0.2},
    "sixteen, rank 16": SIXTEEN | {"student_rank": 16, "fake_rank": 16},
    "sixteen, fresh samples": SIXTEEN | {"share_rollouts": False},
    "sixteen, 4 fake": SIXTEEN | {"fake_updates": 4},
    "sixteen, teacher 28": SIXTEEN | {"teacher_steps": 28},
    "cheap, head start": CHEAP | {"fake_head_start": 50},
    "cheap, high noise first": CHEAP | {"renoise_anneal_steps": 100},
    "cheap, real score unguided above 800": CHEAP | {"real_guidance_high": 800},
    "cheap, lambda .2": CHEAP | {"diversity_weight": 0.2},
    "cheap, rank 16": CHEAP | {"student_rank": 16, "fake_rank": 16},
    "cheap, last step": CHEAP | {"gradient_steps": "last"},
    "cheap, fresh samples": CHEAP | {"share_rollouts": False},
    "one, a quarter of the rate": BEFORE | {"student_lr": 2.5e-4, "fake_lr": 2.5e-4},
}  # fmt: skip

DEMO_ARMS: dict[str, dict[str, object]] = {
    "demo": {},
    "demo, one anchor": {"num_anchored_steps": 1, "gradient_steps": "random"},
    "demo, random step": {"gradient_steps": "random"},
    "demo, plain": {"objective": "dmd", "gradient_steps": "random"},
    "demo, lambda .02": {"diversity_weight": 0.02},
    "demo, average .98": {"ema_decay": 0.98},
    "demo, 5 fake": {"fake_updates": 5},
    "demo, 250 updates": {"steps": 250},
}


def main() -> None:
    """Train and count what is missing, seed by seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--teacher", choices=("sd3", "sd1"), required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS | DEMO_ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.arms:
            options.base = "full-size" if name in ARMS else "demo"
            changes = {"dtype": "bfloat16"} | (ARMS | DEMO_ARMS)[name]
            options.name = name.replace(", ", "-").replace(" ", "-")
            options.set = [f"{key}={value}" for key, value in changes.items()]
            emoji_students.train_missing(options, seed)


if __name__ == "__main__":
    main()

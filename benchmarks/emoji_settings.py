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
from typing import Any

import emoji_students
import torch

BEFORE: dict[str, Any] = {
    "batch_size": 1,
    "steps": 1000,
    "fake_updates": 5,
    "teacher_steps": 28,
    "num_anchored_steps": 1,
    "diversity_weight": 0.05,
}
"""The defaults until these were compared; "eight, lambda .2" has those that came of it."""
CHEAP = BEFORE | {"batch_size": 4, "steps": 400, "fake_updates": 2, "teacher_steps": 12}
EIGHT = CHEAP | {"batch_size": 8, "steps": 200}
SIXTEEN = CHEAP | {"batch_size": 16, "steps": 100}
BEST = EIGHT | {"diversity_weight": 0.2}
TWO = BEST | {"num_anchored_steps": 2}
CHEAP_TWO = TWO | {"teacher_steps": 8}
ARMS: dict[str, dict[str, Any]] = {
    "one": BEFORE,
    "cheap": CHEAP,
    "cheap, half the rate": CHEAP | {"student_lr": 5e-4, "fake_lr": 5e-4},
    "cheap, two anchors": CHEAP | {"num_anchored_steps": 2},
    "cheap, sixteen": SIXTEEN,
    "sixteen, half more of the rate": SIXTEEN | {"student_lr": 1.5e-3, "fake_lr": 1.5e-3},
    "sixteen, two anchors": SIXTEEN | {"num_anchored_steps": 2},
    "sixteen, high noise first": SIXTEEN | {"renoise_anneal_steps": 25},
    "sixteen, real score unguided above 800": SIXTEEN | {"real_guidance_high": 800},
    "sixteen, lambda .2": SIXTEEN | {"diversity_weight": 0.2},
    "sixteen, fresh samples": SIXTEEN | {"share_rollouts": False},
    "sixteen, head start": SIXTEEN | {"fake_head_start": 20},
    "sixteen, rank 16": SIXTEEN | {"student_rank": 16, "fake_rank": 16},
    "eight": EIGHT,
    "eight, lambda .2": BEST,
    "eight, lambda .5": BEST | {"diversity_weight": 0.5},
    "eight, lambda 1": BEST | {"diversity_weight": 1.0},
    "eight, lambda .2, two anchors, last": TWO | {"gradient_steps": "last"},
    "sixteen, lambda .2, two anchors, last": TWO
    | {"batch_size": 16, "steps": 100, "gradient_steps": "last"},
    "eight, lambda .2, two cheap anchors": CHEAP_TWO,
    "eight, lambda .2, two cheap anchors, one fake": CHEAP_TWO | {"fake_updates": 1},
    "eight, lambda .2, 400 updates": BEST | {"steps": 400},
    "eight, lambda .2, keep best": BEST | {"keep": "best", "evaluate_every": 50},
    "eight, lambda .2, average .98": BEST | {"ema_decay": 0.98},
}

DEMO_ARMS: dict[str, dict[str, Any]] = {
    "demo": {},
    "demo, one anchor": {"num_anchored_steps": 1, "gradient_steps": "random"},
    "demo, random step": {"gradient_steps": "random"},
    "demo, plain": {"objective": "dmd", "gradient_steps": "random"},
    "demo, lambda .2": {"diversity_weight": 0.2},
    "demo, average .98": {"ema_decay": 0.98},
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

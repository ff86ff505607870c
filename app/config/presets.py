"""Settings that suit a card's memory, by family. A setting given by hand always wins."""

from __future__ import annotations

from typing import Any

from ...core.errors import SettingsError

MEMORIES = ("6gb", "8gb", "12gb", "16gb", "24gb")

# Eight images an update, one after the other where memory is short: small batches lose variety.
_EIGHT: dict[str, Any] = {"batch_size": 8}
_FOUR_AT_ONCE: dict[str, Any] = _EIGHT | {"micro_batch_size": 4}
_ONE_BY_ONE: dict[str, Any] = _EIGHT | {"micro_batch_size": 1}
_CHECKPOINTED: dict[str, Any] = _ONE_BY_ONE | {"gradient_checkpointing": True}
_SMALLEST: dict[str, Any] = _CHECKPOINTED | {"offload_optimizer": True, "base_weights": "int8"}

# Chosen by arithmetic (weights, two adapters with Adam, activations), not measured on every card.
# All keep the default quality: full layers, rank 64.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "6gb": _CHECKPOINTED,
        "8gb": _CHECKPOINTED,
        "12gb": _EIGHT | {"micro_batch_size": 2},
        "16gb": _FOUR_AT_ONCE,
        "24gb": _FOUR_AT_ONCE,
    },
    "sdxl": {
        "8gb": _SMALLEST,
        "12gb": _CHECKPOINTED | {"offload_optimizer": True},
        "16gb": _CHECKPOINTED,
        "24gb": _ONE_BY_ONE,
    },
    "sd3": {
        "8gb": _SMALLEST,
        "12gb": _CHECKPOINTED,
        "16gb": _CHECKPOINTED,
        "24gb": _ONE_BY_ONE,
    },
    "anima": {
        "8gb": _SMALLEST,
        "12gb": _CHECKPOINTED,
        "16gb": _CHECKPOINTED,
        "24gb": _FOUR_AT_ONCE | {"gradient_checkpointing": True},
    },
    "zimage": {
        "12gb": _SMALLEST,
        "16gb": _SMALLEST,
        "24gb": _CHECKPOINTED | {"base_weights": "int8"},
    },
}

# Of models of another size than their family's first, by title.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "SD3.5 large": {
        "16gb": _SMALLEST,
        "24gb": _CHECKPOINTED | {"base_weights": "int8"},
    },
}

# The embedded teachers: minutes on two cores.
DEMO: dict[str, Any] = {
    "steps": 150,
    "batch_size": 16,
    "teacher_steps": 16,
    "fake_updates": 2,
    "num_anchored_steps": 2,
    "diversity_weight": 0.05,
    "gradient_steps": "last",
    "student_rank": 32,
    "fake_rank": 32,
    "student_lr": 1e-3,
    "fake_lr": 1e-3,
    "save_every": 75,
    "preview_every": 50,
    "evaluate_every": 75,
}


def presets_of(family: str, title: str) -> dict[str, dict[str, Any]]:
    """The settings of a family's model that is called so, by the card's memory."""
    return SIZES.get(title, PRESETS[family])


def preset(family: str, title: str, memory: str) -> dict[str, Any]:
    """Settings for a model on a card with that much memory.

    Raises:
        SettingsError: there is no preset for that little memory.
    """
    available = presets_of(family, title)
    if memory not in available:
        name = title if title in SIZES else family
        raise SettingsError(
            f"There is no preset for {name} on {memory}; the presets for {name} are "
            f"{', '.join(available)}."
        )
    return dict(available[memory])

"""What a checkpoint's metadata say that it predicts, and how that goes with its marker tensors."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..errors import UnsupportedModelError
from .base import Detection

PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type",
                   "parameterization")  # fmt: skip
"""ModelSpec's, its first name, and what scripts write."""
V_KEY, ZERO_SNR_KEY = "ss_v_parameterization", "ss_zero_terminal_snr"
"""What kohya's trainers write, "True" or "False"."""
NAMES = {
    "eps": ("eps", "epsilon", "e", "noise"),
    "v": ("v", "v_prediction", "v_pred", "vpred", "v_parameterization", "velocity"),
    "flow": ("flow", "rf", "rectified_flow", "flow_prediction", "flow_matching"),
    "x0": ("x0", "sample", "x_start", "start_x"),
}
MEANING = {name: prediction for prediction, names in NAMES.items() for name in names}


def with_metadata(
    found: Detection, metadata: Mapping[str, str], allowed: tuple[str, ...], name: str
) -> Detection:
    """The detection, with what the metadata add to it; notes say where that decided.

    A marker among the tensors counts more than metadata, which merges copy unread.

    Args:
        allowed: what models of the family may predict, the usual first.
        name: the file's.

    Raises:
        UnsupportedModelError: it predicts something that models of its family do not here.
    """
    if "flow" in allowed:
        return found  # it predicts one thing, whatever the metadata are copied from
    for key, text in _stated(metadata):
        stated = MEANING.get(text)
        if stated is None:
            note = (
                f"The file's metadata name a prediction type that is not known, {text!r} ({key}); "
                f"{found.prediction!r} is assumed."
            )
            found = replace(found, notes=(*found.notes, note))
            continue
        if stated not in allowed:
            raise UnsupportedModelError(
                f"{name} says in its metadata that it predicts {text!r} ({key}); models of its "
                f"family that predict {' or '.join(allowed)} are supported. Give a file that does, "
                "or take the wrong entry out of the metadata."
            )
        if stated == found.prediction:
            continue
        if found.prediction != allowed[0]:
            note = (
                f"Prediction type {found.prediction!r} by the file's marker tensor, though its "
                f"metadata say {text!r} ({key})."
            )
            return replace(found, notes=(*found.notes, note))
        note = (
            f"Prediction type {stated!r} by the file's metadata ({key}): it has no marker tensor. "
            f"If images come out wrong, set the prediction type to {found.prediction!r}."
        )
        found = replace(found, prediction=stated, notes=(*found.notes, note))  # type: ignore[arg-type]
    if found.prediction == "v" and not found.zero_terminal_snr and _is_true(metadata, ZERO_SNR_KEY):
        note = f"Zero terminal SNR by the file's metadata ({ZERO_SNR_KEY})."
        found = replace(found, zero_terminal_snr=True, notes=(*found.notes, note))
    return found


def full_title(title: str, prediction: str, zero_snr: bool) -> str:
    """The title of a model, with what it predicts where that is not the usual."""
    if prediction != "v":
        return title
    return f"{title} (v-prediction{', zero terminal SNR' if zero_snr else ''})"


def _stated(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key in PREDICTION_KEYS:
        text = metadata.get(key, "").strip().strip('"').lower().replace("-", "_").replace(" ", "_")
        if text and text not in ("none", "null", "unknown"):
            yield key, text
    if _is_true(metadata, V_KEY):
        yield V_KEY, "v"


def _is_true(metadata: Mapping[str, str], key: str) -> bool:
    return metadata.get(key, "").strip().strip('"').lower() in ("true", "1", "yes")

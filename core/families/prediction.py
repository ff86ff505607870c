"""What a checkpoint predicts: by its metadata, its marker tensors, and what the user sets."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import SettingsError, UnsupportedModelError
from .base import Detection, SamplingFacts
from .registry import family

PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type",
                   "parameterization")  # fmt: skip
"""ModelSpec's, its first name, and what scripts write."""
V_KEY, ZERO_SNR_KEY = "ss_v_parameterization", "ss_zero_terminal_snr"
"""What kohya's trainers write, "True" or "False"."""
SHIFT_KEYS = ("flow_shift", "ss_discrete_flow_shift", "ss_flow_shift", "shift")
"""Where trainers and scripts write a flow's shift."""
LEAST_SHIFT, MOST_SHIFT = 0.01, 100.0
FLOW_NAME = re.compile(r"rectified|flow(?!er)|(^|[^a-z])rf([^a-z]|$)", re.IGNORECASE)
"""In the name of a file or folder: it may be a rectified flow. Nothing in most such files says it,
and hosts go by the name, too."""
NAMES = {
    "eps": ("eps", "epsilon", "e", "noise"),
    "v": ("v", "v_prediction", "v_pred", "vpred", "v_parameterization", "velocity"),
    "flow": ("flow", "rf", "rectified_flow", "flow_prediction", "flow_matching"),
    "x0": ("x0", "sample", "x_start", "start_x"),
}
MEANING = {name: prediction for prediction, names in NAMES.items() for name in names}


def with_metadata(
    found: Detection, metadata: Mapping[str, str], sampling: SamplingFacts, name: str
) -> Detection:
    """The detection, with what the metadata and the name add to it; notes say where they did.

    A marker among the tensors counts more than metadata, which merges copy unread; a name is a
    hint alone.

    Args:
        name: the file's.

    Raises:
        UnsupportedModelError: it predicts something that models of its family do not here.
    """
    allowed = sampling.predictions
    if len(allowed) == 1:
        return found  # it predicts one thing, whatever the metadata are copied from
    found = _by_metadata(found, metadata, allowed, name)
    if found.prediction == "flow":
        return _with_stated_shift(found, metadata, sampling.flow_shift)
    said = any(True for _ in _stated(metadata))
    return (
        found if said else replace(found, notes=(*found.notes, *name_notes(found, allowed, name)))
    )


def name_notes(found: Detection, allowed: tuple[str, ...], name: str) -> tuple[str, ...]:
    """A note where a name speaks of a rectified flow and nothing else does."""
    if "flow" not in allowed or found.prediction != allowed[0] or not FLOW_NAME.search(name):
        return ()
    return (
        f"The name {name} speaks of a rectified flow, but nothing in the file says so: "
        f"{found.prediction!r} is assumed. If it is one, set the prediction type to 'flow'.",
    )


def read_shift(value: object) -> float | None:
    """A flow's shift in a config or in metadata; None for what can be none."""
    try:
        shift = float(str(value).strip().strip('"'))
    except ValueError:
        return None
    return shift if not isinstance(value, bool) and LEAST_SHIFT <= shift <= MOST_SHIFT else None


def _with_stated_shift(found: Detection, metadata: Mapping[str, str], usual: float) -> Detection:
    for key in SHIFT_KEYS:
        shift = read_shift(metadata[key]) if key in metadata else None
        if shift is not None:
            note = f"Shift {shift:g} by the file's metadata ({key})."
            return replace(found, shift=shift, notes=(*found.notes, note))
    note = (
        f"Nothing in the file names the shift of its noise levels: {usual:g} is taken, as "
        "ModelSamplingSD3 does in ComfyUI. The shift can be set."
    )
    return replace(found, notes=(*found.notes, note))


def _by_metadata(
    found: Detection, metadata: Mapping[str, str], allowed: tuple[str, ...], name: str
) -> Detection:
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


@dataclass(frozen=True)
class AskedSampling:
    """How a checkpoint is to be sampled, in place of what its files say; None leaves that.

    Attributes:
        prediction: "eps", "v" or "flow".
        zero_terminal_snr: of a model that predicts v.
        shift: of a flow.
    """

    prediction: str | None = None
    zero_terminal_snr: bool | None = None
    shift: float | None = None


def set_otherwise(found: Detection, asked: AskedSampling) -> tuple[Detection, list[str]]:
    """(the detection as the user's settings have it, notes on what they change).

    Raises:
        SettingsError: models of the family are not so.
    """
    sampling, notes = family(found.family).sampling, []
    prediction, zero, shift = asked.prediction, asked.zero_terminal_snr, asked.shift
    if prediction is not None and prediction != found.prediction:
        if prediction not in sampling.predictions:
            allowed = ", ".join(sampling.predictions)
            raise SettingsError(f"{found.title} cannot predict {prediction!r}; allowed: {allowed}.")
        notes.append(
            f"Prediction type {prediction!r} by setting; the file says {found.prediction!r}."
        )
        kept = found.zero_terminal_snr and prediction == "v"
        found = replace(found, prediction=prediction, zero_terminal_snr=kept)  # type: ignore[arg-type]
    if zero is not None and zero != found.zero_terminal_snr:
        if zero and found.prediction != "v":
            raise SettingsError(
                f"zero_terminal_snr is for v-prediction; {found.title} predicts "
                f"{found.prediction!r} (--prediction v, if the file does not say that it is v)."
            )
        notes.append(f"Zero terminal SNR {'on' if zero else 'off'} by setting, not by the file.")
        found = replace(found, zero_terminal_snr=zero)
    if shift is not None and not LEAST_SHIFT <= shift <= MOST_SHIFT:
        raise SettingsError(
            f"shift is {shift:g}; expected {LEAST_SHIFT:g} to {MOST_SHIFT:g}, or 0 for the file's "
            "own or the family's."
        )
    if shift is not None and found.prediction != "flow":
        flow = " (--prediction flow, if the file does not say that it is one)"
        raise SettingsError(
            f"shift is for rectified flows; {found.title} predicts {found.prediction!r}"
            f"{flow if 'flow' in sampling.predictions else ''}."
        )
    usual = found.shift or sampling.flow_shift
    if shift is not None and shift != usual:
        notes.append(f"Shift {shift:g} by setting; without it {usual:g}.")
        found = replace(found, shift=shift)
    return found, notes


def full_title(title: str, found: str, zero_snr: bool, allowed: tuple[str, ...]) -> str:
    """The title of a model, with what it predicts where that is not the usual.

    Args:
        found: what it predicts.
        allowed: what models of the family may predict, the usual first.
    """
    if found == allowed[0]:
        return title
    words = {"v": "v-prediction", "flow": "rectified flow"}[found]
    return f"{title} ({words}{', zero terminal SNR' if zero_snr else ''})"


def _stated(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key in PREDICTION_KEYS:
        text = metadata.get(key, "").strip().strip('"').lower().replace("-", "_").replace(" ", "_")
        if text and text not in ("none", "null", "unknown"):
            yield key, text
    if _is_true(metadata, V_KEY):
        yield V_KEY, "v"


def _is_true(metadata: Mapping[str, str], key: str) -> bool:
    return metadata.get(key, "").strip().strip('"').lower() in ("true", "1", "yes")

"""What a diffusers folder's scheduler says of the model: its prediction and its noise levels."""

import re
from dataclasses import dataclass

from ...errors import UnsupportedModelError
from ..base import Config, Family
from ..prediction import LEAST_SHIFT, MOST_SHIFT, read_shift
from .config_values import Rule, check_config, is_number, number, one_of

CLASS_OF_PREDICTION = {"epsilon": "eps", "v_prediction": "v"}
FLOW = "flow_prediction"
VP_CLASS = re.compile(
    r"(DDIM|DDPM|PNDM|IPNDM|LMSDiscrete|Euler(Ancestral)?Discrete|HeunDiscrete"
    r"|KDPM2(Ancestral)?Discrete|DPMSolver(Multistep|Singlestep|SDE)|CosineDPMSolverMultistep"
    r"|DEISMultistep|UniPCMultistep|SASolver|LCM|TCD)(Parallel|Inverse)?Scheduler"
)
FLOW_CLASS = re.compile(r"FlowMatch\w*Scheduler")
EITHER_CLASS = re.compile(r"(DPMSolver\w+|DEISMultistep|UniPCMultistep|SASolver)Scheduler")
"""These solve flows, too, if they are told to."""
FEW_STEP_CLASS = re.compile(r"(LCM|TCD|FlowMatchLCM)Scheduler")
LEVELS = {"num_train_timesteps": Rule(number(1000), "1000")}
VP_LEVELS = LEVELS | {
    "beta_schedule": Rule(one_of("scaled_linear"), "'scaled_linear'"),
    "beta_start": Rule(number(0.00085), "0.00085"),
    "beta_end": Rule(number(0.012), "0.012"),
    "trained_betas": Rule(one_of(None), "null"),
    "sigma_min": Rule(one_of(None), "null"),
    "sigma_max": Rule(one_of(None), "null"),
    "timestep_type": Rule(one_of(None, "discrete"), "'discrete'"),
}
FLOW_LEVELS = LEVELS | {"invert_sigmas": Rule(one_of(None, False), "false")}


@dataclass(frozen=True)
class StatedSampling:
    """What a scheduler says: what the model predicts, and at which noise levels.

    Attributes:
        shift: of a flow; None is the family's.
    """

    prediction: str
    zero_terminal_snr: bool = False
    shift: float | None = None
    notes: tuple[str, ...] = ()


def read_scheduler(scheduler: Config, family: Family, name: str) -> StatedSampling:
    """What scheduler_config.json says of the model.

    Args:
        scheduler: its content, empty if there is none.
        name: the folder's.

    Raises:
        UnsupportedModelError: a model whose noise or prediction is of another kind.
    """
    label, kind = f"{name}/scheduler/scheduler_config.json", str(scheduler.get("_class_name", ""))
    if "EDM" in kind or scheduler.get("sigma_data") is not None:
        raise UnsupportedModelError(
            f"{name}/ is an EDM variant (as Playground v2.5 or CosXL), by its scheduler "
            f"{kind or 'with sigma_data'}; its noise levels and input scaling are not supported. "
            "Give an ordinary model of the family."
        )
    notes = ()
    if few_step_scheduler(scheduler):
        notes = (
            f"The folder's scheduler is {kind}, that of few-step models (LCM, TCD): a model that "
            "is distilled already does not do as a teacher with guidance. Distil the checkpoint "
            "that it was made from.",
        )
    stated = str(scheduler.get("prediction_type") or "")
    flows = (
        FLOW_CLASS.fullmatch(kind) is not None
        or scheduler.get("use_flow_sigmas") is True
        or stated == FLOW
    )
    if family.sampling.schedule == "flow":
        _check_flow(scheduler, kind, stated, flows=flows, label=label)
        return StatedSampling("flow", notes=notes + _shift_notes(scheduler, family, label))
    if flows and "flow" in family.sampling.predictions:
        check_config(scheduler, FLOW_LEVELS, label)
        shift, more = _shift(scheduler, kind, family.sampling.flow_shift, label)
        said = kind if stated != FLOW else FLOW
        note = f"Prediction type 'flow' by the folder's scheduler ({said})."
        return StatedSampling("flow", shift=shift, notes=(*notes, note, *more))
    if flows:
        raise UnsupportedModelError(
            f"{name}/ is a rectified flow by its scheduler ({kind or FLOW}); of {family.label} "
            "models that predict epsilon or v_prediction are supported."
        )
    if kind and not VP_CLASS.fullmatch(kind):
        raise _other_class(kind, family, label)
    if (stated or "epsilon") not in CLASS_OF_PREDICTION:
        raise UnsupportedModelError(
            f"{name}/ predicts {stated!r}; supported are epsilon and v_prediction."
        )
    check_config(scheduler, VP_LEVELS, label)
    prediction = CLASS_OF_PREDICTION[stated or "epsilon"]
    zero_snr = scheduler.get("rescale_betas_zero_snr") is True
    if zero_snr and prediction == "eps":
        raise UnsupportedModelError(
            f"{label} asks for zero terminal SNR (rescale_betas_zero_snr) of a model that predicts "
            "epsilon, which cannot begin from pure noise. If the model predicts v, write "
            "v_prediction there; if not, take that entry out."
        )
    return StatedSampling(prediction, zero_snr, notes=notes)


def few_step_scheduler(scheduler: Config) -> bool:
    """Whether it is one that few-step models alone are sampled with."""
    return FEW_STEP_CLASS.fullmatch(str(scheduler.get("_class_name", ""))) is not None


def _check_flow(scheduler: Config, kind: str, stated: str, *, flows: bool, label: str) -> None:
    known = not kind or FLOW_CLASS.fullmatch(kind) or EITHER_CLASS.fullmatch(kind)
    if not known or ((kind or stated) and not flows):
        said = f"{kind or 'its scheduler'} predicts {stated or 'epsilon'}"
        raise UnsupportedModelError(
            f"{label}: {said}, but this network is a flow. The folder was put together of parts "
            "that do not belong together; download it again."
        )
    check_config(scheduler, FLOW_LEVELS, label)


def _shift(
    scheduler: Config, kind: str, usual: float, label: str
) -> tuple[float | None, tuple[str, ...]]:
    """(a flow's shift by its scheduler, or None where it names none that is one number; notes)."""
    if scheduler.get("use_dynamic_shifting"):
        note = f"{label} shifts its noise levels by the image's size; here by {usual:g} always."
        return None, (note,)
    names = [name for name in ("shift", "flow_shift") if name in scheduler]
    if not names:
        # the class's own, which diffusers takes then
        return (1.0 if FLOW_CLASS.fullmatch(kind) or EITHER_CLASS.fullmatch(kind) else None), ()
    value = scheduler[names[0]]
    shift = read_shift(value) if isinstance(value, int | float) else None
    if shift is None:
        raise UnsupportedModelError(
            f"{label}: {names[0]} is {value!r}; expected a number from {LEAST_SHIFT:g} to "
            f"{MOST_SHIFT:g}, such as 3.0."
        )
    return shift, ()


def _shift_notes(scheduler: Config, family: Family, label: str) -> tuple[str, ...]:
    ours, theirs = family.sampling.flow_shift, scheduler.get("shift", family.sampling.flow_shift)
    if scheduler.get("use_dynamic_shifting"):
        return (f"{label} shifts its noise levels by the image's size; here by {ours:g} always.",)
    if not isinstance(theirs, int | float) or isinstance(theirs, bool) or not 0 < theirs < 1000:
        raise UnsupportedModelError(f"{label}: shift is {theirs!r}; expected a number such as 3.0.")
    if is_number(theirs, ours):
        return ()
    return (
        f"{label} shifts its noise levels by {theirs:g}; here they are shifted by {ours:g}, as "
        "hosts do for this family.",
    )


def _other_class(kind: str, family: Family, label: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{label}: {kind} is not a scheduler of {family.label} models that is known here. Give an "
        "ordinary model of the family; which sampler it names does not matter, but DDIMScheduler "
        "or EulerDiscreteScheduler are usual."
    )

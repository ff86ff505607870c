"""Model families: detection from tensor names and shapes, and the facts of each family."""

from .base import (
    DENOISER_PREFIXES,
    BaseModel,
    Config,
    Detection,
    Family,
    LoraKey,
    LoraTargets,
    TensorSource,
    VaeFacts,
)
from .checks import CheckedModel, check_files, check_model, check_own_parts, holds_vae
from .models import ModelHeaders, detect, gains_by_half, identify, read_model, weight_files
from .parts.encoders import FILES as ENCODER_FILES
from .parts.encoders import EncoderPlace, encoder_title
from .parts.folder import encoder_folders, is_model_folder, read_folder
from .prediction import AskedSampling, set_otherwise
from .registry import FAMILIES, FAMILY_LABELS, family, register
from .stated import (
    ENCODER_PLACE,
    STATED_KEY,
    USUAL_ENCODER,
    stated_credits,
    stated_encoder,
    stated_settings,
    states,
)
from .unsupported import refuse_quantised

__all__ = [
    "DENOISER_PREFIXES",
    "ENCODER_FILES",
    "ENCODER_PLACE",
    "FAMILIES",
    "FAMILY_LABELS",
    "STATED_KEY",
    "USUAL_ENCODER",
    "AskedSampling",
    "BaseModel",
    "CheckedModel",
    "Config",
    "Detection",
    "EncoderPlace",
    "Family",
    "LoraKey",
    "LoraTargets",
    "ModelHeaders",
    "TensorSource",
    "VaeFacts",
    "check_files",
    "check_model",
    "check_own_parts",
    "detect",
    "encoder_folders",
    "encoder_title",
    "family",
    "gains_by_half",
    "holds_vae",
    "identify",
    "is_model_folder",
    "read_folder",
    "read_model",
    "refuse_quantised",
    "register",
    "set_otherwise",
    "stated_credits",
    "stated_encoder",
    "stated_settings",
    "states",
    "weight_files",
]

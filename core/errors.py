"""Errors a user can cause and fix.

Every message says what was found, what was expected and what to do. Who shows it, without a
traceback: the command line (`cli.main`, exit code 2), the queue (`app/runs/exit_note.py`), HTTP
(`app/api/handler.py`), a page's form (`app/gui/forms`), the web UI's set-up (`look` in
`webui_extension/sampling/auto_setup.py`, as a note). A node lets it through, and ComfyUI shows it.
"""


class DPDMDError(Exception):
    """A mistake in what the user gave us: found, expected, what to do."""


class CheckpointError(DPDMDError):
    """A model file that is missing, damaged, or not what its role asks for."""


class UnsupportedModelError(CheckpointError):
    """A model of a family, or in a storage format, that this project does not handle."""


class LoraError(DPDMDError):
    """A LoRA file that is damaged, of another family, or not a LoRA."""


class UnsupportedLoraError(LoraError):
    """A LoRA whose kind or names are not handled here; a host may know them all the same."""


class RecipeError(DPDMDError):
    """A sampling recipe that is malformed, hostile, or of an unknown version."""


class PromptError(DPDMDError):
    """A prompt or a prompts file that cannot be used."""


class SettingsError(DPDMDError):
    """A setting outside its allowed range, or settings that contradict each other."""


class OutputError(DPDMDError):
    """A place that cannot be written: exists already, read-only, disk full."""


class RunError(DPDMDError):
    """A run directory that is in use, damaged, or does not match what is asked of it."""


class NonFiniteError(DPDMDError):
    """NaN or infinity in weights, a loss or a gradient; says where it appeared."""


class ImageError(DPDMDError):
    """An image's metadata cannot be read."""

"""What stands in the way of images beside a run: that costs the images and never the run."""

from __future__ import annotations

import logging

from ...core.errors import DPDMDError
from ..device import first_line, is_device_lost

log = logging.getLogger("dpdmd_studio.evaluation")


def in_words(error: Exception) -> str:
    """What an error says, for a person; what nobody foresaw is shown with its trace as well."""
    if isinstance(error, DPDMDError):
        return str(error)
    if is_device_lost(error):
        return f"The device no longer answers ({first_line(error)}): restart the computer."
    if isinstance(error, OSError):
        return f"A file or drive failed ({error})."
    log.error("Where it went wrong:", exc_info=error)
    return (
        f"That is an error which nobody foresaw ({type(error).__name__}: {first_line(error)}); "
        "please report it with the lines before this one."
    )


def setback(error: Exception) -> str:
    """The same where a run goes on; the error itself is raised where it cannot."""
    if is_device_lost(error):
        raise error
    return in_words(error)

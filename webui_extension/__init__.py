"""The extension for the AUTOMATIC1111 family. It registers nothing yet."""

from __future__ import annotations


def register() -> None:
    """Register samplers and tab with the host; may be called any number of times.

    The host calls it at start and again on every UI reload. Nothing is registered so far.
    """

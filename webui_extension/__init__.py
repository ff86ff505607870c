"""The extension for the AUTOMATIC1111 family."""

from __future__ import annotations


def register() -> None:
    """Register everything with the host; may be called any number of times.

    The host calls it at start and again on every UI reload.
    """
    from . import host

    if not host.is_here():
        return
    from . import accordion, api_routes, attention, memory, sampler, settings, train_tab

    sampler.register()
    host.watch_components()
    accordion.register()
    attention.register()
    settings.register()
    train_tab.register()
    api_routes.register()
    memory.register()

"""The extension for the AUTOMATIC1111 family."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


def register() -> None:
    """Register everything with the host; may be called any number of times.

    The host calls it at start and again on every UI reload.
    """
    from . import host

    if not host.is_here():
        return
    # For each callback the host looks up the source of all frames that led to it, 0.2 s each time;
    # in a thread there are few.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_register).result()


def _register() -> None:
    from .host import scripts
    from .sampling import accordion, attention, sampler
    from .training import api_routes, memory, settings, train_tab

    sampler.register()
    scripts.watch_components()
    accordion.register()
    attention.register()
    settings.register()
    train_tab.register()
    api_routes.register()
    memory.register()

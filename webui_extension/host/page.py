"""The host's page and server: its events, options and requests, and who may ask."""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def on(event: str, function: Callable[..., Any]) -> None:
    """Call the function at an event of the host, named as in its callbacks: "ui_tabs".

    A host that has no such event never calls it.
    """
    from modules import script_callbacks

    register = getattr(script_callbacks, f"on_{event}", None)
    if register is not None:
        register(function)


def option(name: str, default: Any) -> Any:
    """The value of an option."""
    from modules import shared

    return getattr(shared.opts, name, default)


@contextlib.contextmanager
def option_at(name: str, value: Any) -> Iterator[None]:
    """Have an option of the host at a value while the block runs; nothing where it has none."""
    from modules import shared

    data = shared.opts.data
    if name not in getattr(shared.opts, "data_labels", {}):
        yield
        return
    before = {name: data[name]} if name in data else {}
    data[name] = value
    try:
        yield
    finally:
        data.pop(name, None)
        data |= before


def add_setting(section: tuple[str, str], setting: Mapping[str, Any]) -> None:
    """Put a setting of ours on the host's page.

    Args:
        setting: name, default, label and info; "private" keeps it from the host's own API,
            "infotext" is its name in images, from which it can be pasted.
    """
    import gradio as gr
    from modules import shared

    kind = gr.Checkbox if isinstance(setting["default"], bool) else gr.Textbox
    info = shared.OptionInfo(setting["default"], setting["label"], kind, section=section)
    info.restrict_api = bool(setting.get("private"))
    info.infotext = setting.get("infotext")
    shared.opts.add_option(setting["name"], info.info(setting["info"]))


def serve(app: Any, prefix: str, limit: int, answer: Callable[..., Any]) -> None:
    """Have a function answer all requests below a prefix.

    Args:
        limit: bytes of a body; a larger one is not read.
        answer: (method, path, query, body, headers) -> a response; it runs in a thread.
    """
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response
    from starlette.routing import Route

    async def endpoint(request: Any) -> Response:
        body: bytes | None = b""
        async for chunk in request.stream():
            body = body + chunk if body is not None and len(body) + len(chunk) <= limit else None
        raw = request.scope.get("raw_path") or request.url.path.encode()
        path, query = raw.decode("latin-1").partition("?")[0], dict(request.query_params)
        found = await run_in_threadpool(
            answer, request.method, path, query, body, dict(request.headers)
        )
        headers = {**found.headers, "Content-Type": found.content_type}
        return Response(found.body, found.status, headers)

    route = Route(f"{prefix}/{{rest:path}}", endpoint, methods=["GET", "POST"])
    app.router.routes.insert(0, route)


def credentials() -> list[tuple[str, str]]:
    """(user, password) pairs that the host was started with, for its API and for its page."""
    from modules import initialize_util, shared

    pairs = (getattr(shared.cmd_opts, "api_auth", None) or "").split(",")
    found = [(user, word) for user, colon, word in (p.partition(":") for p in pairs) if colon]
    of_page = getattr(initialize_util, "get_gradio_auth_creds", None)
    pages = list(of_page()) if of_page is not None else []
    return found + [(pair[0], pair[1]) for pair in pages if len(pair) == 2]


def is_public() -> bool:
    """Whether the host was started for other computers to connect."""
    from modules import shared

    address = getattr(shared.cmd_opts, "server_name", None) or "localhost"
    named = any(getattr(shared.cmd_opts, name, None) for name in ("listen", "share", "ngrok"))
    return named or not address.startswith(("127.", "localhost", "::1"))

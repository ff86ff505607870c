"""The host's page and server: tabs, requests, who may ask."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def on_tabs(function: Callable[[], list[tuple[Any, str, str]]]) -> None:
    """Call the function when the host collects tabs: (gradio blocks, title, id) each."""
    from modules import script_callbacks

    script_callbacks.on_ui_tabs(function)


def on_started(function: Callable[[Any], None]) -> None:
    """Call the function with the web application once it is there, after each UI reload again."""
    from modules import script_callbacks

    script_callbacks.on_app_started(lambda _, app: function(app))


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

"""Our answers in ComfyUI's own server."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

ANSWER = "dpdmd_answer"
"""Where a server keeps the function that answers; a reloaded pack puts its own there."""


def serve(
    prefix: str,
    limit: int,
    answer: Callable[[str, str, Mapping[str, str], bytes | None, Mapping[str, str]], Any],
) -> None:
    """Answer all requests below `prefix`, in threads. Called again, the last `answer` counts.

    Args:
        limit: bytes of a body that are read; of a larger one `answer` is handed None.
        answer: (method, path, query, body, headers) -> an answer with status, content_type, body
            and headers.
    """
    import asyncio

    import server
    from aiohttp import web

    instance = getattr(server.PromptServer, "instance", None)
    if instance is None:
        return
    known = hasattr(instance, ANSWER)
    setattr(instance, ANSWER, answer)
    if known:
        return

    async def handler(request: Any) -> Any:
        body = await _read_body(request, limit) if request.can_read_body else b""
        asked = (request.method, request.raw_path.partition("?")[0], dict(request.query), body)
        current = getattr(instance, ANSWER)
        found = await asyncio.to_thread(current, *asked, dict(request.headers))
        headers = {**found.headers, "Content-Type": found.content_type}
        return web.Response(status=found.status, body=found.body, headers=headers)

    for register in (instance.routes.get, instance.routes.post):
        register(prefix + "/{rest:.*}")(handler)


async def _read_body(request: Any, limit: int) -> bytes | None:
    """The body, or None once it is larger than `limit`."""
    found = bytearray()
    async for part in request.content.iter_any():
        found += part
        if len(found) > limit:
            return None
    return bytes(found)

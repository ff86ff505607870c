"""Who may talk to the GUI: checked on every request before gradio sees it.

Pages of other sites must not reach a server on this computer, neither by a form (the Origin is
checked) nor by a name that resolves to it (the Host is checked). Where others may connect, they
need the token: in the address at first, in a cookie from then on.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ..api.exchange import LOCAL_NAMES, host_name

COOKIE = "dpdmd_token"
MAX_BODY_BYTES = 64 << 20
FOREIGN = "This request came from a page of another site. It was refused."
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "media-src 'self' data: blob:; connect-src 'self'; worker-src 'self' blob:; "
        "frame-src 'self'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """An ASGI application in front of another.

    Args:
        token: what a request must bring; None where only this computer can connect.
        any_host: whether the server may be called by any name, as it must where others connect.
    """

    def __init__(self, inner: ASGIApp, token: str | None, *, any_host: bool = False) -> None:
        self._inner, self._token, self._any_host = inner, token, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or refuse it in plain words."""
        if scope["type"] not in ("http", "websocket"):
            await self._inner(scope, receive, send)
            return
        asked = HTTPConnection(scope)
        refused = self._refusal(asked)
        if refused is not None and scope["type"] == "websocket":
            await WebSocketClose(1008)(scope, receive, send)
        elif refused is not None:
            status, text = refused
            headers = {**HEADERS, "cache-control": "no-store"}
            await PlainTextResponse(text, status, headers)(scope, receive, send)
        elif self._token and _token_in_address(asked):
            await self._entry(asked)(scope, receive, send)
        else:
            await self._inner(scope, receive, _with_headers(send))

    def _refusal(self, asked: HTTPConnection) -> tuple[int, str] | None:
        """(status, why) where the request is not let in."""
        host = asked.headers.get("host", "")
        if not self._any_host and host_name(host) not in LOCAL_NAMES:
            return 421, "This server answers to localhost and 127.0.0.1 only."
        if asked.scope["type"] == "websocket" or asked.scope["method"] not in ("GET", "HEAD"):
            origin = asked.headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                return 403, FOREIGN
            if asked.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                return 403, FOREIGN
        length = asked.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return 413, f"That is too large; up to {MAX_BODY_BYTES >> 20} MiB can be sent at once."
        token = _token_in_address(asked) or asked.cookies.get(COOKIE, "")
        if self._token and not hmac.compare_digest(token.encode(), self._token.encode()):
            return 401, (
                "A token is needed. Open the address that the terminal printed when the GUI began; "
                "it ends in ?token=..."
            )
        return None

    def _entry(self, asked: HTTPConnection) -> PlainTextResponse:
        """The same page without the token in its address, and the cookie."""
        query = asked.url.remove_query_params("token").query
        headers = {
            **HEADERS,
            "cache-control": "no-store",
            "location": f"/?{query}" if query else "/",
            "set-cookie": f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Lax",
        }
        return PlainTextResponse("", 303, headers)


def _token_in_address(asked: HTTPConnection) -> str:
    return asked.query_params.get("token", "") if asked.scope.get("path") == "/" else ""


def is_local(host: str) -> bool:
    """Whether only this computer can connect to a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _with_headers(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sender

"""Who may talk to the GUI: checked on every request before gradio sees it.

Pages of other sites must not reach a server on this computer, neither by a form (the Origin is
checked) nor by a name that resolves to it (the Host is checked). Where others may connect, they
need the token: in the address at first, in a cookie from then on.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "dpdmd_token"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
MAX_BODY_BYTES = 64 << 20
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' data: blob:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-src 'self'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """An ASGI application in front of another.

    Args:
        token: what a request must bring; None where only this computer can connect.
        any_host: whether the server may be called by any name, as it must where others connect.
    """

    def __init__(self, inner: Application, token: str | None, *, any_host: bool = False) -> None:
        self._inner, self._token, self._any_host = inner, token, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or refuse it in plain words."""
        if scope["type"] not in ("http", "websocket"):
            await self._inner(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(scope, send, *refused)
        elif self._token and self._asked_token(scope) is not None:
            await _answer(scope, send, 303, "", self._entry(scope))
        else:
            await self._inner(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._any_host and host_name(host) not in LOCAL_NAMES:
            return 421, "This server answers to localhost and 127.0.0.1 only."
        if scope.get("method", "GET") not in ("GET", "HEAD") or scope["type"] == "websocket":
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                return 403, "This request came from a page of another site. It was refused."
            if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                return 403, "This request came from a page of another site. It was refused."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return 413, f"That is too large; up to {MAX_BODY_BYTES >> 20} MiB can be sent at once."
        if self._token and not self._has_token(scope, headers):
            return 401, (
                "A token is needed. Open the address that the terminal printed when the GUI began; "
                "it ends in ?token=..."
            )
        return None

    def _has_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        asked = self._asked_token(scope)
        if asked is not None:
            return self._is_token(asked)
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return kept is not None and self._is_token(kept.value)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), str(self._token).encode())

    def _asked_token(self, scope: Scope) -> str | None:
        found = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
        return found[0] if found and scope.get("path") == "/" else None

    def _entry(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The same page without the token in its address, and the cookie."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        query.pop("token")
        rest = urlencode(query, doseq=True)
        cookie = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Lax"
        location = "/" + (f"?{rest}" if rest else "")
        return [(b"location", location.encode()), (b"set-cookie", cookie.encode())]


def host_name(host: str) -> str:
    """The name in a Host header, without the port; "" for one that is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_local(host: str) -> bool:
    """Whether only this computer can connect to a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _with_headers(send: Send) -> Send:
    async def sender(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", ())}
            added = [pair for pair in HEADERS if pair[0] not in present]
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return sender


async def _answer(
    scope: Scope,
    send: Send,
    status: int,
    text: str,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    own = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*own, *HEADERS, *(headers or [])],
        }
    )
    await send({"type": "http.response.body", "body": text.encode()})

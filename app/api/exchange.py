"""Requests and answers as plain data, and which requests are refused before they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

PREFIX = "/dpdmd/v1"
MAX_BODY_BYTES = 10_000_000
JSON = "application/json"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""How this computer calls itself."""
NOT_HERE = (
    "There is nothing under this address. Expected one of the addresses of the DP-DMD panel; "
    "reload the page if the pack was updated."
)
TOO_LARGE = (
    f"The request has more than {MAX_BODY_BYTES / 1e6:.0f} MB. Send fewer prompts, or name a "
    "prompts file on the node."
)
FOREIGN = (
    "This request came from a page of another site and was refused. Open the panel under the "
    "address that this server has."
)


@dataclass(frozen=True)
class Response:
    """What goes back: status, type and bytes of the body, and further headers."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """A request that is not answered: its status and, as the text, why and what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """One request: the parts of its path below PREFIX, query and body."""

    method: str
    parts: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)


def json_response(content: object, status: int = 200) -> Response:
    """An answer in JSON; numbers that JSON has no word for, as damaged files hold, become null."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(content), ensure_ascii=False)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    # A lone surrogate, as file names may hold, has no UTF-8.
    return Response(status, JSON, text.encode("utf-8", "replace"), headers)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def error_response(status: int, message: str) -> Response:
    """An answer that says what was found, expected and to do."""
    return json_response({"error": message}, status)


def read_request(
    method: str, path: str, query: Mapping[str, str], body: bytes | None, headers: Mapping[str, str]
) -> Request:
    """The request, or RefusedError: too large, from another site, no JSON, or not below PREFIX.

    Args:
        path: as it was sent, percent signs included; anything may stand before PREFIX.
        headers: names in any case.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    if _is_foreign(lower):
        raise RefusedError(403, FOREIGN)
    if body is None or len(body) > MAX_BODY_BYTES:
        raise RefusedError(413, TOO_LARGE)
    _, prefix, rest = path.partition(PREFIX + "/")
    if not prefix:
        raise RefusedError(404, NOT_HERE)
    parts = tuple(unquote(part) for part in rest.split("/"))
    content = _table(body, lower) if method == "POST" else {}
    return Request(method, parts, query, content)


def _is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a page of another site sent a request with these headers.

    Sec-Fetch-Site is set by browsers alone, so "same-origin" is true also behind a proxy that gives
    this server another name.
    """
    if "origin" not in headers or headers.get("sec-fetch-site") == "same-origin":
        return False
    try:
        sender = urlsplit(headers["origin"]).netloc.lower()
    except ValueError:
        return True
    return not sender or sender != headers.get("host", "").lower()


def host_name(host: str) -> str:
    """The name in a Host header, without the port; "" for one that is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _table(body: bytes, headers: Mapping[str, str]) -> Mapping[str, Any]:
    """The JSON object of a POST; other types are what forms of other sites can send."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise RefusedError(
            415, f"The request's type is {kind or 'not given'}; {JSON} was expected. Send JSON."
        )
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            400, f"The request is no JSON ({str(error)[:100]}). Send JSON."
        ) from error
    if not isinstance(content, dict):
        raise RefusedError(400, "The request is JSON but no object; expected names and values.")
    return content

"""The HTTP interface of runs below the host's own server, with a check of who asks.

The host guards its own addresses by --api-auth and --gradio-auth, but none of an extension's.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hmac
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...app.api import MAX_BODY_BYTES, PREFIX, Response
from ...app.api.exchange import LOCAL_NAMES, error_response, host_name
from ..host import folders, page

if TYPE_CHECKING:
    from ...app.api.handler import Api

UNKNOWN = (
    "This needs the user and password that the web UI was started with (--api-auth or "
    "--gradio-auth). Send them as Basic credentials."
)
OTHER_NAME = (
    "This server answers to localhost and 127.0.0.1 only. Open it under one of them, or start the "
    "web UI with --listen."
)


def register() -> None:
    """Answer requests once the host's server is there, after each UI reload again."""
    page.on("app_started", lambda _, app: page.serve(app, PREFIX, MAX_BODY_BYTES, answer))


def answer(
    method: str,
    path: str,
    query: Mapping[str, str],
    body: bytes | None,
    headers: Mapping[str, str],
) -> Response:
    """The answer to one request; see `Api.handle`."""
    refused = refusal(headers, page.credentials(), public=page.is_public())
    return refused or _api().handle(method, path, query, body, headers)


def refusal(
    headers: Mapping[str, str], credentials: Sequence[tuple[str, str]], *, public: bool
) -> Response | None:
    """Why a request is not answered; None lets it in.

    Where no password is asked for and only this computer can connect, the server must be called by
    this computer's own names: those of other sites can be made to point here.

    Args:
        headers: names in lower case.
        credentials: (user, password) pairs of which one is needed; none are needed if it is empty.
        public: whether other computers may connect.
    """
    if credentials:
        if _is_known(headers.get("authorization", ""), credentials):
            return None
        found = error_response(401, UNKNOWN)
        more = {"WWW-Authenticate": 'Basic realm="DP-DMD"'}
        return dataclasses.replace(found, headers={**found.headers, **more})
    if not public and host_name(headers.get("host", "")) not in LOCAL_NAMES:
        return error_response(403, OTHER_NAME)
    return None


def _is_known(given: str, credentials: Sequence[tuple[str, str]]) -> bool:
    """Whether Basic credentials are one of these; it takes as long whichever they are."""
    scheme, _, coded = given.partition(" ")
    try:
        text = base64.b64decode(coded.strip(), validate=True)
    except (binascii.Error, ValueError):
        text = b""
    expected = [f"{user}:{password}".encode() for user, password in credentials]
    same = [hmac.compare_digest(text, pair) for pair in expected]
    return scheme.lower() == "basic" and any(same)


@functools.cache
def _api() -> Api:
    """Made at the first request, so that the host's start does not wait for it."""
    from ...app.api.handler import Api
    from ...app.library.choices import ASSETS
    from .settings import lora_folder

    return Api(lambda: [*folders.model_folders(), ASSETS], lora_folder)

"""The HTTP interface of runs below ComfyUI's own server."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...app.api import MAX_BODY_BYTES, PREFIX, Response
from ..host import folders, web_server

if TYPE_CHECKING:
    from ...app.api.handler import Api


def register() -> None:
    """Answer requests of the panel; doing it again puts this copy of the pack in charge."""
    web_server.serve(PREFIX, MAX_BODY_BYTES, answer)


def answer(
    method: str,
    path: str,
    query: Mapping[str, str],
    body: bytes | None,
    headers: Mapping[str, str],
) -> Response:
    """The answer to one request; see `Api.handle`."""
    return _api().handle(method, path, query, body, headers)


@functools.cache
def _api() -> Api:
    """Made at the first request, so that the host's start does not wait for it."""
    from ...app.api.handler import Api
    from ...app.library.choices import ASSETS

    return Api(lambda: [*folders.paths(*folders.MODEL_FOLDERS), ASSETS], lora_folder)


def lora_folder() -> Path:
    """Where new LoRAs go: the first of the host's folders for them."""
    return folders.paths("loras")[0]

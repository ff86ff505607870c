"""The HTTP interface of runs below ComfyUI's own server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...app.api import MAX_BODY_BYTES, PREFIX
from ...app.api.handler import Api
from ...app.library.choices import ASSETS
from ..host import folders, web_server
from .words import in_node_words


def _node_estimate(values: Mapping[str, Any]) -> dict[str, str]:
    from .new_run import cost

    return {"text": cost(values)}


# New LoRAs go into the first of the host's folders for them.
api = Api(
    lambda: [*folders.paths(*folders.MODEL_FOLDERS), ASSETS],
    lambda: folders.paths("loras")[0],
    {"node-estimate": _node_estimate},
    in_node_words,
)


def register() -> None:
    """Answer requests of the panel; doing it again puts this copy of the pack in charge."""
    web_server.serve(PREFIX, MAX_BODY_BYTES, api.handle)

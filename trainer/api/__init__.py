"""The HTTP interface of runs, the same in every host: JSON in and out, no web framework.

A host makes one `Api` and hands it each request below PREFIX; what comes back is a `Response`.
"""

from __future__ import annotations

from .exchange import MAX_BODY_BYTES, PREFIX, Response
from .handler import Api

__all__ = ["MAX_BODY_BYTES", "PREFIX", "Api", "Response"]

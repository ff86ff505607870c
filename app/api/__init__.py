"""The HTTP interface of runs, the same in every host: JSON in and out, no web framework.

A host makes one `handler.Api` and hands it each request below PREFIX; what comes back is a
`Response`. The handler is a module of its own so that a host's start need not wait for it.
"""

from __future__ import annotations

from .exchange import MAX_BODY_BYTES, PREFIX, Response

__all__ = ["MAX_BODY_BYTES", "PREFIX", "Response"]

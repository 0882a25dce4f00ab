"""What a connection may take of its server.

>>> GrantLimits(requests_per_minute=60).model_dump(exclude_none=True)
{'requests_per_minute': 60}
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolbox_dtma.wire.base import Request

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""Largest request body of any connection."""


class GrantLimits(Request):
    """Limits of one connection, true across all gateway workers of the host. Absent: only the gateway's own bounds."""

    requests_per_minute: Annotated[int | None, Field(ge=1, le=600_000)] = None
    """In no 60 seconds more than this is forwarded. Every HTTP request counts one, a batch one for each message."""
    concurrent_calls: Annotated[int | None, Field(ge=1, le=10_000)] = None
    """JSON-RPC requests in flight; streams that are listened to do not count."""
    max_request_bytes: Annotated[int | None, Field(ge=1024, le=MAX_REQUEST_BYTES)] = None
    max_response_bytes: Annotated[int | None, Field(ge=1024, le=1 << 40)] = None
    """Of each answer's body, streams included."""
    call_timeout_seconds: Annotated[int | None, Field(ge=1, le=3600)] = None
    """From the arrival of a request to the end of its answer; not for streams that are listened to."""

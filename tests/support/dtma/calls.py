"""Calls as a gateway worker tells of them."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from toolbox_dtma.gateway.accounting import uuid7
from toolbox_dtma.link.calls import CallEntry
from toolbox_dtma.link.messages import Calls

STREAM = "a" * 32


def entry(connection: str = "c-1", tool: str = "get_time", *, at: float | None = None, **changes: Any) -> CallEntry:
    """One call that ended well."""
    values: dict[str, Any] = {
        "id": UUID(uuid7(time.time() if at is None else at)),
        "connection": connection,
        "tool": tool,
        "outcome": "ok",
        "duration_ms": 12,
        "bytes_in": 100,
        "bytes_out": 200,
    }
    return CallEntry.model_validate(values | changes)


def told(batch: int, *calls: CallEntry, stream: str = STREAM, **more: Any) -> Calls:
    """One message of them."""
    return Calls(stream=stream, batch=batch, calls=calls, **more)

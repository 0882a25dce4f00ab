"""What a worker tells DTMA of calls. Everything has a bound: a worker handles strangers' traffic, DTMA is root."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from toolbox_dtma.wire import CallOutcome
from toolbox_dtma.wire.base import Uid

MAX_COUNT = 1 << 53
"""Largest number: what JSON readers agree on."""
MAX_ENTRIES = 256
"""Most calls in one message; at 2 KiB each they fit a frame."""

REFUSAL_REASONS = frozenset(
    {
        "body", "call-timeout", "concurrency-limit", "connect", "denied", "event-id", "headers", "host",
        "instance-away", "internal", "method", "no-policy", "no-room-for-limits", "origin", "other", "other-instance",
        "path", "rate-limit", "request-size-limit", "response-size-limit", "session", "slow-body", "stopping",
        "throttled", "too-large", "unauthorized", "undecidable", "upstream-broken", "upstream-encoded",
        "upstream-malformed", "upstream-session", "upstream-silent", "upstream-status",
    }
)  # fmt: skip
"""Why a gateway answers by itself: labels of a metric, so there are no others."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class CallEntry(BaseModel):
    """One call. Whose it was is DTMA's to say, from the grant: the worker only names the connection."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: UUID
    """UUIDv7: it also says when the call came in."""
    connection: Uid
    tool: Annotated[str, StringConstraints(max_length=256)]
    outcome: CallOutcome
    duration_ms: Count
    bytes_in: Count
    bytes_out: Count
    protocol_version: Annotated[str | None, Field(pattern=r"^[0-9A-Za-z.-]{1,64}$")] = None
    trace_id: Annotated[str | None, Field(pattern=r"^[0-9a-f]{32}$")] = None


Dropped = Annotated[dict[Uid, Count], Field(max_length=MAX_ENTRIES)]
Refusals = Annotated[
    dict[Annotated[str, StringConstraints(max_length=32)], Count], Field(max_length=len(REFUSAL_REASONS))
]

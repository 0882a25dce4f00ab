"""Call records: what was called, by whom and how it ended, never with which arguments.

>>> CallOutcome("tool_error").value
'tool_error'
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field

from toolbox_dtma.wire.base import Answer, Uid


class CallOutcome(StrEnum):
    """How a `tools/call` ended."""

    OK = "ok"
    """A result. Also an answer above 64 KiB that shows no error in its first 64 KiB and its last 512 bytes."""
    TOOL_ERROR = "tool_error"
    """A result with `isError: true`."""
    RPC_ERROR = "rpc_error"
    """A JSON-RPC error of the server."""
    INPUT_REQUIRED = "input_required"
    """A result that asks the client for more and ends this round (2026-07-28)."""
    TASK = "task"
    """A result that stands for a task that runs on."""
    DENIED = "denied"
    """Refused at the gateway: by policy, or for headers or a session that do not fit."""
    LIMITED = "limited"
    """Refused, or cut, by a limit of the connection."""
    CANCELLED = "cancelled"
    """Ended by the client, by a revocation, or by the gateway's end."""
    TIMEOUT = "timeout"
    """No answer within the time that the connection or the gateway allows."""
    UPSTREAM_ERROR = "upstream_error"
    """The server could not be reached, broke off, sent no answer to the call or one that must not be passed on."""
    DETACHED = "detached"
    """The client hung up, or the server ended a stream that can be resumed: the call ran on, its end was not seen."""


class CallRecord(Answer):
    """One `tools/call` that a connection's credential was valid for, refused ones included."""

    id: UUID
    """UUIDv7, made when the call came in."""
    connection: Uid
    namespace: str
    """Namespace of the connection, in which its agent has its name."""
    agent: str
    instance: Uid
    subject: Literal[None] = None
    tool: Annotated[str, Field(max_length=256)]
    """Name as called, cut to 256 characters; empty if it was none. U+FFFD stands for a NUL."""
    outcome: CallOutcome
    started_at: AwareDatetime
    """By the host's clock."""
    duration_ms: Annotated[int, Field(ge=0)]
    bytes_in: Annotated[int, Field(ge=0)]
    """Of the HTTP request's body. A batch's stand in the record of its first call, so that sums are right."""
    bytes_out: Annotated[int, Field(ge=0)]
    """Of the HTTP answer's body, as sent to the client; of a batch as above."""
    protocol_version: Annotated[str | None, Field(max_length=64)] = None
    trace_id: Annotated[str | None, Field(pattern=r"^[0-9a-f]{32}$")] = None
    """From the W3C `traceparent` header, else from that member of the call's `_meta`, where one is valid."""


class CallBatch(Answer):
    """Answer to `GET /v2/calls?after={cursor}`: records of the owner's connections, oldest first.

    Asking with a batch's `cursor` acknowledges it: what it held may then be forgotten. Asking again with the one
    before gives the same records with the same ids. Without `after`, or with a cursor that the spool does not know, as
    after a restart of the host's agent, everything held is sent: records may come twice, with the same ids.
    """

    cursor: str
    items: tuple[CallRecord, ...]
    dropped: Annotated[int, Field(ge=0)] = 0
    """Records of this owner's connections that were lost, since the spool was made."""

"""AgentMCPConnection (`amc`): one agent's access to one MCP server."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BeforeValidator, Field

from toolbox_operator.api.conditions import Conditions
from toolbox_operator.api.mcpserver import Expose, MemoryQuantity
from toolbox_operator.api.meta import ApiModel, Duration, StatusModel, Text256, Text1024
from toolbox_operator.api.refs import DnsLabel, DnsSubdomain, NamespacedRef

TIMESTAMP_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
)


def _read_time(value: object) -> object:
    # The schema's date-time alone admits a time without an offset, which means another moment to every reader.
    if not isinstance(value, str):
        return value
    example = "like 2027-01-01T00:00:00Z"
    if re.fullmatch(TIMESTAMP_PATTERN, value) is None:
        raise ValueError(f"must be a time with its offset, {example}")
    try:
        return datetime.fromisoformat(value.upper())
    except ValueError:
        raise ValueError(f"must be a time of the calendar, {example}") from None


Timestamp = Annotated[
    AwareDatetime, BeforeValidator(_read_time), Field(json_schema_extra={"pattern": TIMESTAMP_PATTERN})
]


class AgentRef(ApiModel):
    """The agent of this name in the connection's namespace."""

    name: DnsLabel
    """Name of the agent."""


class ConnectionLimits(ApiModel):
    """How much of the server the connection may take. What is absent is bounded by the gateway alone."""

    requests_per_minute: Annotated[int, Field(ge=1, le=600_000)] | None = None
    """HTTP requests in any 60 seconds, a batch counted by its messages; no limit when absent."""
    concurrent_calls: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Requests in flight, streams that are listened to left out; no limit when absent."""
    max_request_bytes: MemoryQuantity | None = None
    """Largest request body, like 64Ki; 4Mi when absent, which is also the most. At least 1Ki."""
    max_response_bytes: MemoryQuantity | None = None
    """Largest answer, event streams included, like 10Mi; no limit when absent. At least 1Ki."""
    call_timeout: Duration | None = None
    """Longest time from a request to the end of its answer, like 30s or 5m; no limit when absent. 1s to 1h."""


class AgentMCPConnectionSpec(ApiModel):
    """Who connects to what, and how much of it."""

    agent: AgentRef
    """The agent that connects: the one of this name in this namespace. Cannot change."""
    server_ref: NamespacedRef
    """The MCPServer to connect to. Cannot change."""
    active: bool = True
    """Whether the connection works; false cuts it off, running sessions included."""
    expose: Expose = Expose()
    """What this connection may use of what the server exposes: it narrows, never widens. Default: everything."""
    limits: ConnectionLimits = ConnectionLimits()
    """How much of the server the connection may take. Default: no limits of its own."""
    expires_at: Timestamp | None = None
    """When the connection ends; never when absent."""
    secret_name: DnsSubdomain | None = None
    """Name of the Secret the agent's URL and token are written to; <name>-mcp when absent. Cannot change."""


class ConnectionPhase(StrEnum):
    """Summary for people; conditions are the truth."""

    PENDING = "Pending"
    CONNECTED = "Connected"
    DISCONNECTED = "Disconnected"
    DENIED = "Denied"
    EXPIRED = "Expired"
    ERROR = "Error"
    DELETING = "Deleting"


class ResolvedConnection(StatusModel):
    """Immutable fields as first accepted."""

    agent: Text256
    """Name of the agent."""
    server: Text256
    """The MCPServer, as namespace/name."""
    secret_name: Text256
    """Name of the Secret."""


class AgentMCPConnectionStatus(StatusModel):
    """The truth about the connection."""

    phase: ConnectionPhase = ConnectionPhase.PENDING
    """Summary for people; programs read the conditions."""
    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Programmed and Ready; Reconciling and Stalled while true."""
    resolved: ResolvedConnection | None = None
    """The fields that cannot change, as first accepted."""
    connection_id: Text256 | None = None
    """Identity of the connection in the database and at the gateway."""
    agent_id: Text256 | None = None
    """Identity of the agent in the database."""
    endpoint: Text1024 | None = None
    """URL the agent calls; the same as in the Secret."""
    secret_name: Text256 | None = None
    """Name of the Secret that holds the agent's URL and token."""
    tools: Annotated[int, Field(ge=0)] | None = None
    """How many tools the connection may use."""
    calls: Annotated[int, Field(ge=0)] | None = None
    """Tool calls made with it since it was created, refused ones included; absent before the first."""
    last_used_time: AwareDatetime | None = None
    """When the newest of these calls began, by the host's clock."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation this status was written for."""

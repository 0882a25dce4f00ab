"""AgentMCPConnection (`amc`): one agent's access to one MCP server."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from toolbox_operator.api.conditions import Condition
from toolbox_operator.api.mcpserver import Expose
from toolbox_operator.api.meta import ApiModel, StatusModel
from toolbox_operator.api.refs import DnsLabel, DnsSubdomain, NamespacedRef


class AgentRef(ApiModel):
    """The agent of this name in the connection's namespace."""

    name: DnsLabel


class AgentMCPConnectionSpec(ApiModel):
    """Who connects to what, and how much of it."""

    agent: AgentRef
    server_ref: NamespacedRef
    active: bool = True
    expose: Expose = Expose()
    expires_at: datetime | None = None
    secret_name: DnsSubdomain | None = None


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

    agent: str
    server: str
    """`namespace/name` of the MCPServer."""
    secret_name: str


class AgentMCPConnectionStatus(StatusModel):
    """The truth about the connection."""

    phase: ConnectionPhase = ConnectionPhase.PENDING
    conditions: tuple[Condition, ...] = ()
    resolved: ResolvedConnection | None = None
    connection_id: str | None = None
    agent_id: str | None = None
    endpoint: str | None = None
    secret_name: str | None = None
    tools: int | None = None
    observed_generation: int = 0

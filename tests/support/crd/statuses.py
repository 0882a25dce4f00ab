"""One status of each kind with every field set, long texts included."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from support.crd.cases import SERVER_RESOLVED, Manifest
from toolbox_operator.api.conditions import Condition
from toolbox_operator.api.connection import AgentMCPConnectionStatus, ConnectionPhase, ResolvedConnection
from toolbox_operator.api.mcpserver import (
    ContainerStatus,
    MCPServerPhase,
    MCPServerStatus,
    ServerInfo,
    ToolStatus,
)
from toolbox_operator.api.meta import Kind, StatusModel
from toolbox_operator.api.sessions import SessionsStatus
from toolbox_operator.api.toolbox import AgentStatus, ToolboxPhase, ToolboxStatus

_CONDITIONS = (
    Condition(
        type="Ready",
        status="False",
        reason="ContainerExited",
        message="m" * 40_000,
        last_transition_time=datetime(2026, 10, 1, 12, tzinfo=UTC),
        observed_generation=3,
    ),
)

_HASH = f"sha256:{'0' * 64}"

STATUSES: dict[Kind, StatusModel] = {
    Kind.TOOLBOX: ToolboxStatus(
        phase=ToolboxPhase.READY,
        conditions=_CONDITIONS,
        host_id="f3c1",
        agent=AgentStatus(version="0.1.0", protocol=2, engine="27.0", os="linux", arch="amd64"),
        servers=3,
        observed_generation=3,
    ),
    Kind.MCP_SERVER: MCPServerStatus(
        phase=MCPServerPhase.ERROR,
        conditions=_CONDITIONS,
        instance_id="7f1c",
        resolved=SERVER_RESOLVED.model_copy(update={"max_sessions": 10, "idle_timeout": "30m"}),
        container=ContainerStatus(
            name="mt-time",
            id="0" * 64,
            image="registry.example.com/mcp-time:1.4",
            image_digest=f"sha256:{'0' * 64}",
            state="exited",
            started_at=datetime(2026, 10, 1, 11, 59, 59, 123456, tzinfo=UTC),
            restarts=4,
            exit_code=137,
            reason="OutOfMemory",
            message="n" * 5000,
        ),
        sessions=SessionsStatus(open=2, max=10),
        endpoint="https://tbx-1.example.com:30443/mcp/7f1c",
        protocol_version="2025-11-25",
        server_info=ServerInfo(name="time", version="1.4"),
        tools=tuple(ToolStatus(name=f"tool-{n}", description="d" * 300, hash=_HASH) for n in range(256)),
        tools_total=300,
        tools_truncated=True,
        tools_hash=_HASH,
        tools_generation=3,
        connections=2,
        observed_generation=3,
    ),
    Kind.CONNECTION: AgentMCPConnectionStatus(
        phase=ConnectionPhase.CONNECTED,
        conditions=_CONDITIONS,
        resolved=ResolvedConnection(agent="research-bot", server="mcp-system/time", secret_name="example-mcp"),
        connection_id="9a2e",
        agent_id="44d0",
        endpoint="https://tbx-1.example.com:30443/mcp/7f1c",
        secret_name="example-mcp",
        tools=12,
        calls=123_456,
        last_used_time=datetime(2026, 10, 1, 12, tzinfo=UTC),
        observed_generation=3,
    ),
}


def with_empty_texts(status: Manifest) -> Manifest:
    """The status as it is when a server describes nothing and a condition says nothing."""
    texts = {"message", "description", "version"}

    def emptied(node: Any) -> Any:
        if isinstance(node, dict):
            members = cast("Manifest", node)
            return {name: "" if name in texts else emptied(value) for name, value in members.items()}
        return [emptied(item) for item in cast("list[Any]", node)] if isinstance(node, list) else node

    return cast("Manifest", emptied(status))

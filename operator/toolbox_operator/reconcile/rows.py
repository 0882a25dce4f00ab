"""Rows of the record, from objects and their status."""

from __future__ import annotations

from typing import Any

from toolbox_dtma.wire import InstanceReport
from toolbox_operator.api.conditions import ConditionType
from toolbox_operator.api.connection import AgentMCPConnectionStatus
from toolbox_operator.api.mcpserver import MCPServerPhase, MCPServerStatus
from toolbox_operator.api.parse import ServerObject, ToolboxObject
from toolbox_operator.api.toolbox import ToolboxStatus
from toolbox_operator.domain.conditions import find
from toolbox_operator.domain.connection import ConnectionObserved
from toolbox_operator.domain.connection_status import record_status
from toolbox_operator.domain.inputs import default_path
from toolbox_operator.domain.server import speaks_stdio, transport_of
from toolbox_operator.store.api import ConnectionRow, InstanceRow, Observation, ToolboxRow


def toolbox_row(toolbox: ToolboxObject, status: ToolboxStatus | None = None) -> ToolboxRow:
    """The row of a Toolbox."""
    now = status or toolbox.status
    return ToolboxRow(
        id=toolbox.uid,
        namespace=toolbox.key.namespace,
        name=toolbox.key.name,
        generation=toolbox.generation,
        endpoint=toolbox.spec.endpoint if toolbox.spec else "",
        gateway_url=toolbox.spec.gateway_url if toolbox.spec else "",
        status=now.phase.value.lower(),
        host_id=now.host_id,
        agent_version=now.agent.version if now.agent else None,
    )


def instance_row(
    server: ServerObject,
    instance_id: str,
    toolbox: ToolboxObject,
    status: MCPServerStatus | None = None,
    report: InstanceReport | None = None,
    boot_id: int = 0,
) -> InstanceRow:
    """The row of a server. Without `report` its observed columns are left as they are."""
    now = status or server.status
    resolved, transport = now.resolved, transport_of(server)
    ready = find(now.conditions, ConditionType.READY)
    container: dict[str, Any] | None = None
    tools: list[dict[str, str]] | None = None
    capabilities: dict[str, Any] = {}
    if report is not None:
        container = now.container.model_dump(mode="json", by_alias=True, exclude_none=True) if now.container else None
        tools = [
            {"name": tool.name, "description": tool.description} | ({"hash": tool.hash} if tool.hash else {})
            for tool in now.tools
        ]
        if report.observed.probe is not None:
            capabilities = dict.fromkeys(report.observed.probe.capabilities, True)
    return InstanceRow(
        id=instance_id,
        uid=server.uid,
        namespace=server.key.namespace,
        name=server.key.name,
        generation=server.generation,
        toolbox=toolbox_row(toolbox),
        status=now.phase.value.lower(),
        image=resolved.image if resolved else server.spec.image if server.spec else "",
        transport=transport,
        endpoint_path=None if speaks_stdio(server) else resolved.path if resolved else default_path(transport),
        observation=None if report is None else Observation(boot_id, report.observed.seq),
        image_digest=now.container.image_digest if now.container else None,
        container=container,
        tools=tools,
        capabilities=capabilities,
        error_message=ready.message if ready is not None and now.phase is MCPServerPhase.ERROR else None,
    )


def connection_row(seen: ConnectionObserved, status: AgentMCPConnectionStatus) -> ConnectionRow | None:
    """The row of a connection; None while its spec cannot be read and nothing was accepted before."""
    connection, server, toolbox = seen.connection, seen.server, seen.toolbox
    agent = connection.spec.agent.name if connection.spec else status.resolved.agent if status.resolved else None
    if agent is None:
        return None
    instance: InstanceRow | None = None
    if server is not None and toolbox is not None and server.status.instance_id is not None:
        instance = instance_row(server, server.status.instance_id, toolbox)
    config = {"transport": "streamable-http"} | ({"endpoint": status.endpoint} if status.endpoint else {})
    return ConnectionRow(
        id=connection.uid,
        namespace=connection.key.namespace,
        name=connection.key.name,
        generation=connection.generation,
        agent_name=agent,
        instance=instance,
        is_active=connection.spec is not None and connection.spec.active,
        status=record_status(status.phase),
        config=config,
    )

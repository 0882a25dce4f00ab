"""Objects of the API for tests of decisions, as the API server would send them."""

from __future__ import annotations

from typing import Any

from toolbox_dtma.wire import (
    ContainerReport,
    DesiredSummary,
    InstancePhase,
    InstanceReason,
    InstanceReport,
    InstanceState,
    ObservedInstance,
    ProbeReport,
    SessionCounts,
    ToolSummary,
)
from toolbox_operator.api.meta import API_VERSION, Kind
from toolbox_operator.api.parse import (
    ConnectionObject,
    ServerObject,
    ToolboxObject,
    parse_connection,
    parse_server,
    parse_toolbox,
)

UID = "0f2d3c4b-5a69-4788-9c0d-1e2f3a4b5c6d"
HASH = "a" * 64


def body(kind: Kind, name: str, spec: Any, *, status: Any = None, namespace: str = "mcp-system", **meta: Any) -> Any:
    """A body with the usual metadata."""
    return {
        "apiVersion": API_VERSION,
        "kind": str(kind),
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": UID,
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **meta,
        },
        "spec": spec,
        "status": status or {},
    }


def server(spec: Any = None, **more: Any) -> ServerObject:
    """An MCPServer."""
    base = {
        "toolboxRef": {"name": "tbx-1"},
        "image": "registry.example.com/mcp-time:1.4",
        "transport": "streamable-http",
        "port": 3001,
    }
    return parse_server(body(Kind.MCP_SERVER, "time", {**base, **(spec or {})}, **more))


def toolbox(spec: Any = None, **more: Any) -> ToolboxObject:
    """A Toolbox."""
    base = {
        "endpoint": "https://10.0.0.1:30000",
        "gatewayURL": "https://tbx-1.example.com:30443",
        "authSecretRef": {"name": "tbx-1-dtma", "key": "token"},
    }
    return parse_toolbox(body(Kind.TOOLBOX, "tbx-1", {**base, **(spec or {})}, **more))


def connection(spec: Any = None, **more: Any) -> ConnectionObject:
    """An AgentMCPConnection."""
    base = {"agent": {"name": "research-bot"}, "serverRef": {"name": "time"}}
    return parse_connection(body(Kind.CONNECTION, "bot-time", {**base, **(spec or {})}, **more))


def report(
    phase: InstancePhase = InstancePhase.READY,
    reason: InstanceReason = InstanceReason.READY,
    *,
    generation: int = 1,
    observed_generation: int | None = None,
    inputs_hash: str = HASH,
    observed_hash: str | None = None,
    state: InstanceState = InstanceState.RUNNING,
    container: str | None = "running",
    probe: bool | None = True,
    message: str = "",
    uid: str = UID,
    sessions: int | None = None,
) -> InstanceReport:
    """What a host says of the server; with `sessions`, so many of ten are open of one that speaks stdio."""
    if sessions is not None:
        container = None
    return InstanceReport(
        id=UID,
        uid=uid,
        namespace="mcp-system",
        name="time",
        desired=DesiredSummary(
            generation=generation,
            inputs_hash=inputs_hash,
            image="registry.example.com/mcp-time:1.4",
            port=3001 if sessions is None else None,
            path="/mcp" if sessions is None else None,
            state=state,
        ),
        observed=ObservedInstance(
            generation=generation if observed_generation is None else observed_generation,
            inputs_hash=inputs_hash if observed_hash is None else observed_hash,
            seq=1,
            phase=phase,
            reason=reason,
            message=message,
            container=None
            if container is None
            else ContainerReport(name="mtb-time", id="c" * 64, image="x", state=container),
            sessions=None if sessions is None else SessionCounts(open=sessions, max=10),
            probe=None
            if probe is None
            else ProbeReport(ok=probe, protocol_version="2025-11-25", tools=(ToolSummary(name="t"),), tools_total=1),
        ),
    )

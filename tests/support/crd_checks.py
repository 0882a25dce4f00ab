"""The checks that hold on every API server."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from support.crd_accepted_cases import AcceptedCase
from support.crd_api import Answer, Api, collection
from support.crd_cases import SERVER_RESOLVED, Manifest, edited, valid
from support.crd_rule_cases import RuleCase
from support.crd_schema_cases import SchemaCase
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
from toolbox_operator.api.parse import parse_status
from toolbox_operator.api.toolbox import AgentStatus, ToolboxPhase, ToolboxStatus


def update(api: Api, namespace: str, kind: Kind, before: Manifest, after: Manifest) -> Answer:
    """Create an object, replace it, delete it; the answer to the replacement."""
    path = collection(kind, namespace)
    created = api.create(path, before)
    assert created.accepted, created.message
    here = f"{path}/{before['metadata']['name']}"
    try:
        version = created.body["metadata"]["resourceVersion"]
        return api.replace(here, edited(after, {"metadata.resourceVersion": version}))
    finally:
        api.delete(here)


def submit(api: Api, namespace: str, case: RuleCase | AcceptedCase) -> Answer:
    """The server's answer to a case: to its creation (dry run), or to the update it stands for."""
    base = valid(case.kind, namespace=namespace)
    after = edited(base, case.edits)
    if not case.update:
        return api.create(collection(case.kind, namespace), after, dry_run=True)
    before = edited(base, case.before) if isinstance(case, RuleCase) else base
    return update(api, namespace, case.kind, before, after)


def check_schema_case(api: Api, namespace: str, case: SchemaCase) -> None:
    """The mistake is refused with the message; by a server that drops unknown fields it is dropped."""
    body = edited(valid(case.kind, namespace=namespace), case.edits)
    answer = api.create(collection(case.kind, namespace), body, dry_run=True)
    if case.served is None and not api.strict:
        assert answer.accepted, answer.message
        assert case.strict is not None
        field = case.strict.split('"')[1].rsplit(".", 1)[1]
        assert f'"{field}"' not in json.dumps(answer.body["spec"]), "the unknown field was stored"
        return
    assert not answer.accepted, f"accepted: {answer.body}"
    expected = case.served or case.strict
    assert expected is not None
    assert expected in answer.message


def _conditions() -> tuple[Condition, ...]:
    now = datetime(2026, 10, 1, 12, tzinfo=UTC)
    return (
        Condition(
            type="Ready",
            status="False",
            reason="ContainerExited",
            message="m" * 40_000,
            last_transition_time=now,
            observed_generation=3,
        ),
    )


STATUSES: dict[Kind, StatusModel] = {
    Kind.TOOLBOX: ToolboxStatus(
        phase=ToolboxPhase.READY,
        conditions=_conditions(),
        host_id="f3c1",
        agent=AgentStatus(version="0.1.0", protocol=2, engine="27.0", os="linux", arch="amd64"),
        servers=3,
        observed_generation=3,
    ),
    Kind.MCP_SERVER: MCPServerStatus(
        phase=MCPServerPhase.ERROR,
        conditions=_conditions(),
        instance_id="7f1c",
        resolved=SERVER_RESOLVED,
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
        endpoint="https://tbx-1.example.com:30443/mcp/7f1c",
        protocol_version="2025-11-25",
        server_info=ServerInfo(name="time", version="1.4"),
        tools=tuple(ToolStatus(name=f"tool-{n}", description="d" * 300) for n in range(256)),
        tools_total=300,
        tools_truncated=True,
        connections=2,
        observed_generation=3,
    ),
    Kind.CONNECTION: AgentMCPConnectionStatus(
        phase=ConnectionPhase.CONNECTED,
        conditions=_conditions(),
        resolved=ResolvedConnection(agent="research-bot", server="mcp-system/time", secret_name="example-mcp"),
        connection_id="9a2e",
        agent_id="44d0",
        endpoint="https://tbx-1.example.com:30443/mcp/7f1c",
        secret_name="example-mcp",
        tools=12,
        observed_generation=3,
    ),
}


def check_status_survives(api: Api, namespace: str, kind: Kind) -> None:
    """A status with every field set is stored whole: nothing of it is unknown to the schema."""
    path = collection(kind, namespace)
    created = api.create(path, valid(kind, "whole-status", namespace))
    assert created.accepted, created.message
    here = f"{path}/whole-status"
    try:
        status = STATUSES[kind]
        written = status.model_dump(mode="json", by_alias=True)
        assert all(value is not None for value in written.values()), "the example must set every field"
        stored = api.replace(f"{here}/status", {**created.body, "status": written})
        assert stored.accepted, stored.message
        assert stored.body["status"] == written
        assert parse_status(type(status), stored.body["status"]) == status
    finally:
        api.delete(here)

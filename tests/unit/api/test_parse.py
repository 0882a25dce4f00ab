"""Parsing what the API server sends: typed when right, one readable text when wrong, never an exception."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.crd.accepted_cases import ACCEPTED, AcceptedCase
from support.crd.cases import Manifest, as_read, edited, valid
from support.crd.examples import EXAMPLES, load
from support.crd.schema_cases import SCHEMA, SchemaCase
from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.connection import AgentMCPConnectionStatus
from toolbox_operator.api.mcpserver import EnvVar, MCPServerPhase, MCPServerSpec, MCPServerStatus, ToolStatus
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.api.parse import (
    ConnectionObject,
    ServerObject,
    SpecInvalid,
    ToolboxObject,
    parse_connection,
    parse_server,
    parse_spec,
    parse_status,
    parse_toolbox,
)
from toolbox_operator.api.refs import From
from toolbox_operator.api.toolbox import ToolboxStatus

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted({*MCPServerSpec.model_json_schema()["properties"], "name", "limits", "x"})),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def parse(kind: Kind, body: Manifest) -> ToolboxObject | ServerObject | ConnectionObject:
    match kind:
        case Kind.TOOLBOX:
            return parse_toolbox(body)
        case Kind.MCP_SERVER:
            return parse_server(body)
        case Kind.CONNECTION:
            return parse_connection(body)


@pytest.mark.parametrize("case", SCHEMA, ids=lambda case: case.name)
def test_the_operator_says_what_to_change(case: SchemaCase) -> None:
    parsed = parse(case.kind, as_read(edited(valid(case.kind), case.edits)))
    assert parsed.spec is None
    assert parsed.spec_error is not None
    assert parsed.spec_error.startswith(case.ours)
    assert parsed.problem is not None
    assert parsed.problem.reason is Reason.SPEC_INVALID


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_what_the_api_server_accepts_parses(case: AcceptedCase) -> None:
    parsed = parse(case.kind, as_read(edited(valid(case.kind), case.edits)))
    assert parsed.spec_error is None
    assert parsed.spec is not None
    assert parsed.problem is None


def test_the_identity_of_an_object_is_read_from_its_metadata() -> None:
    body = edited(
        as_read(valid(Kind.MCP_SERVER, "time", "mcp-system")),
        {
            "metadata.annotations": {"a": "1"},
            "metadata.labels": {"b": "2"},
            "metadata.finalizers": ["magictoolbox.dev/cleanup"],
            "metadata.deletionTimestamp": "2026-10-01T12:00:00Z",
        },
    )
    server = parse_server(body)
    assert (server.kind, server.key) == (Kind.MCP_SERVER, Key("mcp-system", "time"))
    assert (server.uid, server.generation, server.resource_version) == ("7f1c", 1, "1")
    assert (server.annotations, server.labels) == ({"a": "1"}, {"b": "2"})
    assert server.finalizers == ("magictoolbox.dev/cleanup",)
    assert server.deletion_timestamp == datetime(2026, 10, 1, 12, tzinfo=UTC)
    assert server.deleting


def test_defaults_hold_also_where_the_api_server_filled_in_none() -> None:
    server = parse_server(as_read(valid(Kind.MCP_SERVER)))
    assert server.spec is not None
    assert server.spec.sharing.namespaces.from_ is From.SAME
    assert server.spec.expose.tools.allow == ("*",)
    assert server.spec.security.read_only_root_filesystem


def test_a_null_counts_as_absent_as_it_does_for_the_api_server() -> None:
    server = parse_server(as_read(edited(valid(Kind.MCP_SERVER), {"spec.path": None, "spec.state": None})))
    assert server.problem is None


def test_a_broken_rule_leaves_the_spec_readable_and_names_the_problem() -> None:
    server = parse_server(as_read(edited(valid(Kind.MCP_SERVER), {"spec.path": "/a//b", "spec.image": "A"})))
    assert server.spec is not None
    assert server.problem is not None
    assert server.problem.message.startswith("spec.image: write an image reference")
    assert "; spec.path: write an absolute path" in server.problem.message


def test_immutable_fields_are_compared_with_the_status() -> None:
    body = as_read(edited(valid(Kind.CONNECTION), {"spec.agent.name": "other-bot"}))
    body["status"] = {"resolved": {"agent": "research-bot", "server": "mcp-system/time", "secretName": "example-mcp"}}
    connection = parse_connection(body)
    assert connection.problem is not None
    assert connection.problem.reason is Reason.IMMUTABLE_FIELD


def test_many_mistakes_are_counted_instead_of_listed() -> None:
    with pytest.raises(SpecInvalid, match=r"and 3 more$"):
        parse_spec(MCPServerSpec, {f"field{n}": n for n in range(5)})


def test_python_names_of_fields_are_not_accepted() -> None:
    spec = edited(valid(Kind.MCP_SERVER), {"spec.toolbox_ref": {"name": "tbx-1"}})["spec"]
    with pytest.raises(SpecInvalid, match="toolbox_ref: unknown field; did you mean toolboxRef"):
        parse_spec(MCPServerSpec, spec)


def test_an_error_never_repeats_a_value() -> None:
    spec = edited(valid(Kind.MCP_SERVER), {"spec.env": [{"name": "KEY!", "value": ["hunter2"]}]})["spec"]
    with pytest.raises(SpecInvalid) as error:
        parse_spec(MCPServerSpec, spec)
    assert "hunter2" not in str(error.value)


def test_values_of_variables_appear_in_no_repr() -> None:
    body = as_read(edited(valid(Kind.MCP_SERVER), {"spec.env": [{"name": "KEY", "value": "hunter2"}]}))
    assert "hunter2" not in repr(parse_server(body))
    assert "hunter2" not in repr(EnvVar(name="KEY", value="hunter2"))


@settings(deadline=None)
@given(JSON)
@example({"port": 10**4000})
@example({"toolboxRef": 1, "image": [], "transport": {}, "resources": {"limits": 1.5}})
def test_any_spec_parses_or_is_explained_without_jargon(spec: Any) -> None:
    try:
        parse_spec(MCPServerSpec, spec)
    except SpecInvalid as error:
        assert str(error).startswith("spec")
        assert not re.search(r"pydantic|Input should|_type|not a valid value", str(error))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(MCPServerStatus.model_json_schema()["properties"])), JSON) | JSON)
def test_no_status_stops_the_operator(status: Any) -> None:
    for model in (ToolboxStatus, MCPServerStatus, AgentMCPConnectionStatus):
        assert isinstance(parse_status(model, status), model)


def test_a_status_that_is_not_even_text_counts_as_none() -> None:
    assert parse_status(ToolboxStatus, {"hostId": "\ud800", "servers": 3}) == ToolboxStatus()


def test_what_fits_of_a_damaged_status_is_kept() -> None:
    good = {"type": "Ready", "status": "True", "reason": "Ready", "lastTransitionTime": "2026-10-01T12:00:00Z"}
    raw = {
        "phase": "Hibernating",
        "conditions": [good, {"type": "Ready"}, 3],
        "instanceId": "7f1c",
        "toolsTotal": "many",
        "introducedLater": True,
    }
    status = parse_status(MCPServerStatus, raw)
    assert status.phase is MCPServerPhase.PENDING
    assert [condition.type for condition in status.conditions] == ["Ready"]
    assert (status.instance_id, status.tools_total) == ("7f1c", 0)


def test_what_a_server_says_of_itself_is_cut_to_fit_the_status() -> None:
    tool = ToolStatus(name="n", description="x" * 1000)
    assert len(tool.description) == 256
    assert tool.description.endswith("…")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted_by_the_operator(path: Path) -> None:
    for kind, body in load(path):
        assert parse(kind, as_read(body)).problem is None


def test_there_is_an_example_of_every_kind() -> None:
    assert {kind for path in EXAMPLES for kind, _ in load(path)} == set(Kind)

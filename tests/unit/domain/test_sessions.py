"""Servers that speak stdio: what their status says, and when the number of open sessions may be written anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.conditions import check_conditions
from support.reconcilers.observed import HASH, UID, report, server, toolbox
from toolbox_dtma.wire import InstancePhase, InstanceReason, InstanceReport, InstanceState
from toolbox_operator.api.mcpserver import MCPServerPhase, MCPServerStatus
from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID
from toolbox_operator.api.parse import ServerObject
from toolbox_operator.api.sessions import SessionsStatus
from toolbox_operator.domain.host import HostState, HostView
from toolbox_operator.domain.server import ServerObserved, first_hold, speaks_stdio
from toolbox_operator.domain.server_status import deployed_status
from toolbox_operator.domain.sessions import only_counted, same_but_sessions, wait_left, with_open

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
STDIO = {"transport": "stdio", "port": None}


def stdio_server(status: MCPServerStatus | None = None, **more: Any) -> ServerObject:
    written = {} if status is None else status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return server(STDIO, annotations={ANNOTATION_INSTANCE_ID: UID}, status=written, **more)


def seen(found: InstanceReport | None, obj: ServerObject | None = None) -> ServerObserved:
    host = HostView(HostState.REACHABLE, synced=True, instances={} if found is None else {UID: found})
    return ServerObserved(server=obj or stdio_server(), toolbox=toolbox(), host=host)


def status_of(found: InstanceReport | None, obj: ServerObject | None = None) -> MCPServerStatus:
    return deployed_status(seen(found, obj), HASH, NOW)


def told(status: MCPServerStatus, type_: str) -> tuple[str, str, str]:
    return next((c.status, c.reason, c.message) for c in status.conditions if c.type == type_)


def test_a_ready_server_has_sessions_and_no_container() -> None:
    status = status_of(report(sessions=3))
    assert status.phase is MCPServerPhase.ACTIVE
    assert status.container is None
    assert status.sessions == SessionsStatus(open=3, max=10)
    assert told(status, "Ready")[:2] == ("True", "Ready")
    assert told(status, "Deployed") == ("True", "Deployed", "Each session gets a container as specified.")


def test_a_server_that_listens_has_no_sessions() -> None:
    status = status_of(report(), server(annotations={ANNOTATION_INSTANCE_ID: UID}))
    assert status.sessions is None
    assert status.container is not None


def test_a_stopped_server_starts_no_session_and_is_done() -> None:
    found = report(InstancePhase.STOPPED, InstanceReason.STOPPED, state=InstanceState.STOPPED, probe=None, sessions=0)
    status = status_of(found)
    assert status.phase is MCPServerPhase.STOPPED
    assert told(status, "Deployed") == ("True", "Stopped", "No session is started, as specified.")
    assert {c.type for c in status.conditions} == {"Ready", "Accepted", "ResolvedRefs", "Deployed"}


@pytest.mark.parametrize(
    ("reason", "deployed"),
    [
        (InstanceReason.PROBE_FAILED, "True"),
        (InstanceReason.CONTAINER_EXITED, "False"),
        (InstanceReason.OUT_OF_MEMORY, "False"),
        (InstanceReason.IMAGE_NOT_FOUND, "False"),
        (InstanceReason.START_FAILED, "False"),
        (InstanceReason.NETWORK_FAILED, "False"),
    ],
)
def test_a_server_in_error_is_deployed_only_if_its_process_was_talked_with(
    reason: InstanceReason, deployed: str
) -> None:
    status = status_of(report(InstancePhase.ERROR, reason, probe=False, sessions=0))
    assert status.phase is MCPServerPhase.ERROR
    assert told(status, "Deployed")[0] == deployed
    assert told(status, "Ready")[:2] == ("False", str(reason))


@given(
    phase=st.sampled_from(InstancePhase),
    reason=st.sampled_from(InstanceReason),
    probe=st.sampled_from([None, True, False]),
)
def test_every_status_is_well_formed_and_speaks_of_no_port_and_of_no_container_of_the_server(
    phase: InstancePhase, reason: InstanceReason, probe: bool | None
) -> None:
    obj = stdio_server()
    status = status_of(report(phase, reason, probe=probe, sessions=0), obj)
    written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    check_conditions({"metadata": obj.body["metadata"], "status": written})
    for condition in status.conditions:
        assert "port" not in condition.message, condition
        assert "container runs" not in condition.message, condition
        assert "started again" not in condition.message, condition


def test_a_host_that_does_not_have_the_server_any_more_has_no_sessions_of_it() -> None:
    before = stdio_server(status_of(report(sessions=3)))
    assert status_of(None, before).sessions is None


def test_what_was_accepted_decides_even_if_the_spec_was_edited_by_force() -> None:
    accepted = status_of(report(sessions=0))
    assert speaks_stdio(stdio_server())
    assert not speaks_stdio(server())
    written = accepted.model_dump(mode="json", by_alias=True, exclude_none=True)
    edited = server(status=written, annotations={ANNOTATION_INSTANCE_ID: UID})
    assert speaks_stdio(edited)
    hold = first_hold(seen(None, edited))
    assert hold is not None and hold.reason == "ImmutableField"


def test_what_runs_of_a_server_that_is_not_permitted_any_more_is_said_to_run_on() -> None:
    running = status_of(report(sessions=3))
    for status, runs in ((running, True), (running.model_copy(update={"sessions": None}), False)):
        written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        spec = {**STDIO, "toolboxRef": {"name": "tbx-1", "namespace": "mcp-system"}}
        hold = first_hold(seen(None, server(spec, status=written, namespace="team-a")))
        assert hold is not None and hold.reason == "NotPermitted"
        assert ("left running" in hold.message) == runs


def test_a_status_that_only_counts_anew_is_told_from_one_that_says_something_else() -> None:
    before = status_of(report(sessions=3))
    same = status_of(report(sessions=3), stdio_server(before))
    more = status_of(report(sessions=4), stdio_server(before))
    failed = status_of(
        report(InstancePhase.ERROR, InstanceReason.PROBE_FAILED, probe=False, sessions=4), stdio_server(before)
    )
    assert same == before
    assert not only_counted(before, same)
    assert only_counted(before, more)
    assert with_open(more, 3) == before
    assert not only_counted(before, failed)
    assert not only_counted(MCPServerStatus(), more), "the first number is shown with the rest"
    widened = more.model_copy(update={"sessions": SessionsStatus(open=4, max=20)})
    assert not only_counted(before, widened)


def test_a_server_that_listens_never_only_counts_anew() -> None:
    plain = server(annotations={ANNOTATION_INSTANCE_ID: UID})
    before = status_of(report(), plain)
    assert not only_counted(before, before)
    assert with_open(before, 3) == before


@pytest.mark.parametrize(
    ("written", "left"),
    [
        (None, 50.0),  # a process before may have written it just before it ended
        (70.0, 30.0),
        (41.5, 1.5),
        (40.0, 0.0),
        (0.0, 0.0),
    ],
)
def test_a_number_waits_until_the_status_was_left_alone_for_long_enough(written: float | None, left: float) -> None:
    assert wait_left(written, begun=90.0, now=100.0, every=60.0) == left


def test_reports_that_differ_in_sessions_and_sequence_say_the_same_otherwise() -> None:
    first = report(sessions=3)
    later = first.observed.model_copy(update={"seq": 9, "sessions": report(sessions=4).observed.sessions})
    assert same_but_sessions(first, first.model_copy(update={"observed": later}))
    assert not same_but_sessions(first, report(sessions=3, probe=False))
    assert not same_but_sessions(first, report(sessions=3, generation=2))


def test_a_moment_later_nothing_is_to_be_written() -> None:
    before = status_of(report(sessions=3))
    again = deployed_status(seen(report(sessions=3), stdio_server(before)), HASH, NOW + timedelta(hours=1))
    assert again == before

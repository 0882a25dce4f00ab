"""What is decided about an MCPServer, and what its status says, for everything that can be observed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.conditions import check_conditions
from support.reconcilers.observed import HASH, UID, report, server, toolbox
from toolbox_dtma.wire import InstancePhase, InstanceReason, InstanceReport, InstanceState
from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.mcpserver import MCPServerPhase, MCPServerStatus
from toolbox_operator.api.meta import ANNOTATION_ABANDON, ANNOTATION_INSTANCE_ID, Key
from toolbox_operator.api.parse import ServerObject
from toolbox_operator.domain.host import HostFailure, HostState, HostView
from toolbox_operator.domain.server import (
    Removal,
    ServerObserved,
    contact_hold,
    first_hold,
    instance_id_of,
    nothing_changes,
    removal,
    told,
)
from toolbox_operator.domain.server_status import deleting_status, deployed_status, held_status

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DOWN = HostFailure(Reason.HOST_UNREACHABLE, "The host cannot be reached: connection refused.")
DELETED = {"deletionTimestamp": "2026-01-02T00:00:00Z"}


def seen(
    obj: ServerObject | None = None,
    state: HostState = HostState.REACHABLE,
    found: InstanceReport | None = None,
    **more: Any,
) -> ServerObserved:
    failure = DOWN if state in (HostState.UNREACHABLE, HostState.LOST) else None
    host = HostView(state, synced=True, failure=failure, instances={} if found is None else {UID: found})
    annotated = server(annotations={ANNOTATION_INSTANCE_ID: UID})
    given: dict[str, Any] = {"server": obj or annotated, "toolbox": toolbox(), "host": host, **more}
    return ServerObserved(**given)


def ready(status: MCPServerStatus) -> tuple[str, str]:
    return next((c.status, c.reason) for c in status.conditions if c.type == "Ready")


def check(observed: ServerObserved, status: MCPServerStatus) -> None:
    meta = observed.server.body["metadata"]
    check_conditions({"metadata": meta, "status": status.model_dump(mode="json", by_alias=True, exclude_none=True)})


@given(
    phase=st.sampled_from(InstancePhase),
    reason=st.sampled_from(InstanceReason),
    generations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    hashes=st.tuples(st.sampled_from(["a" * 64, "b" * 64]), st.sampled_from(["a" * 64, "b" * 64])),
    state=st.sampled_from(InstanceState),
    container=st.sampled_from([None, "created", "running", "exited", "paused", "dead"]),
    probe=st.sampled_from([None, True, False]),
    message=st.text(max_size=40),
    ours=st.booleans(),
)
def test_ready_needs_a_probe_of_exactly_this_spec_and_every_status_is_well_formed(
    phase: InstancePhase,
    reason: InstanceReason,
    generations: tuple[int, int],
    hashes: tuple[str, str],
    state: InstanceState,
    container: str | None,
    probe: bool | None,
    message: str,
    ours: bool,
) -> None:
    found = report(
        phase,
        reason,
        generation=generations[0],
        observed_generation=generations[1],
        inputs_hash=hashes[0],
        observed_hash=hashes[1],
        state=state,
        container=container,
        probe=probe,
        message=message,
        uid=UID if ours else "another",
    )
    observed = seen(found=found)
    status = deployed_status(observed, HASH, NOW)
    check(observed, status)
    deserved = ours and phase is InstancePhase.READY and generations == (1, 1) and hashes == (HASH, HASH) and probe
    assert (ready(status)[0] == "True") == bool(deserved)
    if status.phase is MCPServerPhase.ACTIVE:
        assert phase is InstancePhase.READY


def test_a_stopped_server_is_finished_and_neither_ready_nor_in_trouble() -> None:
    found = report(
        InstancePhase.STOPPED, InstanceReason.STOPPED, state=InstanceState.STOPPED, container="exited", probe=None
    )
    status = deployed_status(seen(found=found), HASH, NOW)
    assert status.phase is MCPServerPhase.STOPPED
    assert ready(status) == ("False", "Stopped")
    assert {c.type for c in status.conditions} == {"Ready", "Accepted", "ResolvedRefs", "Deployed"}


@pytest.mark.parametrize("said", ["Stopping the server.", "Unpausing, to stop the server."])
def test_a_server_whose_process_still_runs_is_stopping_and_not_stopped(said: str) -> None:
    found = report(InstancePhase.PENDING, InstanceReason.STOPPED, state=InstanceState.STOPPED, probe=None, message=said)
    status = deployed_status(seen(found=found), HASH, NOW)
    conditions = {condition.type: condition for condition in status.conditions}
    assert status.phase is MCPServerPhase.PENDING
    assert ready(status) == ("False", "Stopping")
    assert (conditions["Deployed"].status, conditions["Reconciling"].reason) == ("False", "Stopping")
    assert conditions["Ready"].message == f"The server is about to stop. The host says: {said}".rstrip(".") + "."


def test_what_a_probe_told_stays_while_the_server_is_down() -> None:
    up = deployed_status(seen(found=report()), HASH, NOW)
    assert [tool.name for tool in up.tools] == ["t"]
    before = server(
        annotations={ANNOTATION_INSTANCE_ID: UID},
        status=up.model_dump(mode="json", by_alias=True, exclude_none=True),
    )
    crashed = report(InstancePhase.ERROR, InstanceReason.CONTAINER_EXITED, container="exited", probe=None)
    down = deployed_status(seen(before, found=crashed), HASH, NOW)
    assert down.tools == up.tools
    assert down.phase is MCPServerPhase.ERROR


@pytest.mark.parametrize(
    ("obj", "more", "reason", "stalls"),
    [
        (server({"image": "UPPER"}), {}, "SpecInvalid", True),
        (server({"port": None}), {}, "SpecInvalid", True),
        (server({"unknown": 1}), {}, "SpecInvalid", True),
        (server(annotations={ANNOTATION_INSTANCE_ID: "x"}), {}, "InstanceIdInvalid", True),
        (
            server(status={"instanceId": "other"}, annotations={ANNOTATION_INSTANCE_ID: UID}),
            {},
            "InstanceIdInvalid",
            True,
        ),
        (server(), {"senior": Key("a", "b")}, "InstanceIdInUse", True),
        (server(), {"toolbox": None, "host": None}, "ToolboxNotFound", False),
        (server(namespace="team-a"), {}, "NotPermitted", False),
        (server(), {"toolbox": toolbox(**DELETED)}, "ToolboxNotReady", False),
    ],
)
def test_each_obstacle_has_its_reason_and_only_those_an_edit_cures_are_stalled(
    obj: ServerObject, more: dict[str, Any], reason: str, stalls: bool
) -> None:
    observed = seen(obj, **more)
    hold = first_hold(observed)
    assert hold is not None and hold.reason == reason
    status = held_status(observed, hold, NOW)
    check(observed, status)
    assert ready(status) == ("False", reason)
    assert any(c.type == "Stalled" for c in status.conditions) == stalls
    assert hold.message.endswith(".")


@pytest.mark.parametrize("state", HostState)
@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("deleting", [False, True])
def test_before_the_lease_is_over_nothing_changes_unless_the_spec_did(
    state: HostState, generation: int, deleting: bool
) -> None:
    status = deployed_status(seen(found=report()), HASH, NOW).model_dump(mode="json", by_alias=True, exclude_none=True)
    more = DELETED if deleting else {}
    observed = seen(server(status=status, generation=generation, **more), state)
    absent = state in (HostState.NEW, HostState.IDENTIFIED, HostState.UNREACHABLE)
    assert nothing_changes(observed) == (absent and generation == 1 and not deleting)


@pytest.mark.parametrize("state", HostState)
def test_a_host_that_cannot_be_told_is_a_reason_to_wait_and_a_lost_one_makes_its_servers_unknown(
    state: HostState,
) -> None:
    observed = seen(state=state)
    hold = contact_hold(observed)
    if state is HostState.REACHABLE:
        assert hold is None
        return
    assert hold is not None and hold.quiet
    status = held_status(observed, hold, NOW)
    check(observed, status)
    lost = state is HostState.LOST
    assert ready(status)[0] == ("Unknown" if lost else "False")
    assert status.phase is (MCPServerPhase.UNKNOWN if lost else MCPServerPhase.PENDING)


def test_an_edit_during_a_short_outage_leaves_the_phase_that_was_last_seen() -> None:
    status = deployed_status(seen(found=report()), HASH, NOW).model_dump(mode="json", by_alias=True, exclude_none=True)
    annotated = {"annotations": {ANNOTATION_INSTANCE_ID: UID}}
    observed = seen(server(status=status, generation=2, **annotated), HostState.UNREACHABLE)
    hold = contact_hold(observed)
    assert hold is not None
    during = held_status(observed, hold, NOW)
    check(observed, during)
    assert during.phase is MCPServerPhase.ACTIVE
    assert ready(during) == ("False", "ToolboxNotReady")


@pytest.mark.parametrize("placed", [False, True])
def test_a_server_that_is_not_permitted_is_said_to_run_on_only_if_it_runs(placed: bool) -> None:
    observed = seen(server(namespace="team-a"), found=report() if placed else None)
    hold = first_hold(observed)
    assert hold is not None and hold.reason == "NotPermitted"
    assert ("left running" in hold.message) == placed


def test_an_instance_id_comes_from_the_annotation_then_from_status_then_from_the_uid() -> None:
    assert instance_id_of(server()) == UID
    assert instance_id_of(server(status={"instanceId": "s"})) == "s"
    assert instance_id_of(server(status={"instanceId": "s"}, annotations={ANNOTATION_INSTANCE_ID: "a"})) == "a"


def test_a_host_is_told_again_when_generation_or_inputs_differ() -> None:
    assert told(report(), 1, HASH)
    assert not told(report(), 2, HASH)
    assert not told(report(), 1, "b" * 64)
    assert not told(report(), 1, None)
    assert not told(None, 1, HASH)


GLASS = {"annotations": {ANNOTATION_ABANDON: "true"}}
STALLED_TOOLBOX = toolbox(
    status={
        "conditions": [
            {
                "type": "Stalled",
                "status": "True",
                "reason": "HostChanged",
                "message": "The endpoint now leads to another host.",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "observedGeneration": 1,
            }
        ]
    }
)


@pytest.mark.parametrize(
    ("obj", "state", "more", "missing", "expected"),
    [
        (server(**DELETED), HostState.REACHABLE, {}, False, Removal.REMOVE),
        (server(**DELETED, **GLASS), HostState.REACHABLE, {}, False, Removal.REMOVE),
        (server(**DELETED), HostState.UNREACHABLE, {}, False, Removal.BLOCKED),
        (server(**DELETED), HostState.LOST, {}, False, Removal.BLOCKED),
        (server(**DELETED), HostState.NEW, {}, False, Removal.WAIT),
        (server(**DELETED), HostState.IDENTIFIED, {}, False, Removal.WAIT),
        (server(**DELETED), HostState.NEW, {"host": None}, False, Removal.WAIT),
        (server(**DELETED), HostState.IDENTIFIED, {"toolbox": STALLED_TOOLBOX}, False, Removal.BLOCKED),
        (server(**DELETED, **GLASS), HostState.UNREACHABLE, {}, False, Removal.ABANDON),
        (server(**DELETED), HostState.UNREACHABLE, {"toolbox": toolbox(**DELETED)}, False, Removal.ABANDON),
        (server(**DELETED), HostState.NEW, {"toolbox": toolbox(**DELETED)}, False, Removal.WAIT),
        (server(**DELETED), HostState.NEW, {"toolbox": None, "host": None}, True, Removal.ABANDON),
        (server(**DELETED), HostState.NEW, {"toolbox": None, "host": None}, False, Removal.BLOCKED),
        (server(**DELETED), HostState.REACHABLE, {"senior": Key("a", "b")}, False, Removal.NOTHING),
    ],
)
def test_a_container_is_left_behind_only_on_order_or_with_its_toolbox(
    obj: ServerObject, state: HostState, more: dict[str, Any], missing: bool, expected: Removal
) -> None:
    observed = seen(obj, state, **more)
    assert removal(observed, toolbox_missing=missing) is expected
    check(observed, deleting_status(observed, Reason.CLEANUP_BLOCKED, "Because.", NOW))

"""A host is cut off from the network, once for long and often for short."""

from __future__ import annotations

import pytest

from localstack.quickstart import Target
from support.hosts.far_toolbox import FarToolbox
from support.poll import until

pytestmark = pytest.mark.faults

FLAPS = 4


def recorded(far: FarToolbox, server: Target) -> str:
    """What the record says of a server's state."""
    instance = far.world.status(server)["instanceId"]
    query = f"SELECT status_on_toolbox FROM account_tool_instances WHERE id = '{instance}'"  # noqa: S608 - our own id
    return str(far.world.rows(query)[0][0])


def test_a_host_cut_off_is_lost_after_its_lease_and_loses_nothing(far: FarToolbox) -> None:
    # With the shortest one, Unreachable is over within three seconds.
    far.world.patch(far.target, {"spec": {"leaseDuration": "40s"}})
    far.world.await_condition(far.target, "Ready", "True")
    server = far.ready_server("time")
    connection = far.ready_connection("bot", server)
    before, grants = far.container(server), far.host.grants()
    seen = {target: far.world.condition(target, "Ready") for target in (server, connection)}
    far.host.cut(management_only=True)

    unreachable = far.world.await_condition(far.target, "Reachable", "False", "HostUnreachable", seconds=90)
    assert unreachable["message"].startswith("The host cannot be reached")
    # Within the lease nothing else changes.
    assert far.world.status(far.target)["phase"] == "Unreachable"
    assert {target: far.world.condition(target, "Ready") for target in seen} == seen
    far.world.await_event(far.target, "HostUnreachable")

    far.world.await_status(far.target, phase="Lost", seconds=90)
    lost = far.world.await_condition(far.target, "Ready", "False", "HostLost")
    assert "leaseDuration" in lost["message"]
    far.world.await_event(far.target, "HostLost")
    unknown = far.world.await_condition(server, "Ready", "Unknown", "HostLost")
    assert "lost" in unknown["message"] and "not known" in unknown["message"]
    assert far.world.status(server)["phase"] == "Unknown"
    far.world.await_event(server, "HostLost")
    waiting = far.world.await_condition(connection, "Ready", "Unknown", "ServerNotReady")
    assert "lost" in waiting["message"]
    assert far.world.status(connection)["phase"] == "Pending"
    until("recorded", lambda: recorded(far, server), lambda status: status == "unknown")
    # The agent never noticed, and nothing was taken away.
    assert far.call(connection) == before
    assert far.host.containers(running_only=True) == [before]
    assert far.host.grants() == grants

    far.host.cut()
    assert far.refusal(connection) is not None
    far.host.heal()
    for target in (far.target, server, connection):
        far.world.await_condition(target, "Ready", "True", seconds=60)
    assert far.container(server) == before
    assert far.call(connection) == before
    until("recorded", lambda: recorded(far, server), lambda status: status == "active")


def test_a_flapping_host_disturbs_nothing_and_is_not_shouted_about(far: FarToolbox) -> None:
    server = far.ready_server("time")
    connection = far.ready_connection("bot", server)
    before = far.container(server)
    # An Event is written a moment after the status that it is about.
    for target in (server, connection):
        far.world.await_event(target, far.world.condition(target, "Ready")["reason"], type_="Normal")
    ready = {target: far.world.condition(target, "Ready") for target in (server, connection)}
    told = {target: far.reasons(target) for target in (server, connection)}
    for _ in range(FLAPS):
        far.host.leave()
        far.world.await_condition(far.target, "Reachable", "False")
        far.host.heal()
        far.world.await_condition(far.target, "Ready", "True")
    assert {target: far.world.condition(target, "Ready") for target in ready} == ready
    assert {target: far.reasons(target) for target in told} == told
    assert far.container(server) == before
    assert far.call(connection) == before
    # Repeats of an Event are counted in a series instead of being told anew.
    assert far.reasons(far.target).count("Ready") == 1
    assert len(far.reasons(far.target)) <= 5

"""What is wanted of a host changes while nobody can tell it."""

from __future__ import annotations

import pytest

from localstack.quickstart import Target
from support.hosts.far_toolbox import FarToolbox
from support.poll import until

pytestmark = pytest.mark.faults

ABANDON = {"metadata": {"annotations": {"magictoolbox.dev/abandon": "true"}}}


def leave(far: FarToolbox) -> None:
    """The host goes out of contact; its gateway serves on."""
    far.host.leave()
    far.world.await_condition(far.target, "Reachable", "False", "HostUnreachable")


def closed(far: FarToolbox, table: str, id_: str) -> str:
    """Why a row of the record is closed."""
    query = f"SELECT delete_reason FROM {table} WHERE id = '{id_}' AND deleted_at IS NOT NULL"  # noqa: S608 - our own
    rows = until("closed", lambda: far.world.rows(query))
    return str(rows[0][0])


def gone(far: FarToolbox, *targets: Target) -> None:
    """Waits until objects are gone."""
    for target in targets:
        until(
            f"{target.resource} gone",
            lambda target=target: far.world.find(target),
            lambda found: found is None,
            seconds=60,
        )


def test_what_is_deleted_while_its_host_is_away_stays_until_the_host_was_told(far: FarToolbox) -> None:
    server, kept = far.ready_server("time"), far.ready_server("kept")
    connection, left = far.ready_connection("bot", server), far.ready_connection("left", kept)
    instance = far.instance(server)
    uid = str(far.world.status(left)["connectionId"])
    kept_container = far.container(kept)
    leave(far)
    for target in (connection, left, server):
        far.space.delete(target, wait=False)
    for target in (left, connection, server):
        condition = far.world.await_condition(target, "Ready", "False", "CleanupBlocked")
        assert 'magictoolbox.dev/abandon="true"' in condition["message"]
        assert "cannot be reached" in condition["message"]
        assert "abandon" in far.world.await_event(target, "CleanupBlocked")
        assert far.world.status(target)["phase"] == "Deleting"
    assert far.world.condition(left, "Programmed")["reason"] == "RevocationPending"
    assert far.call(left), "its token is still accepted, as status says"
    assert len(far.host.containers(instance)) == 1
    secret = far.space.secret(left.name)
    far.host.heal()
    gone(far, connection, left, server)
    assert far.host.containers(instance) == []
    assert instance not in far.host.instances()
    assert uid not in far.host.grants()
    assert far.world.refusal(secret, "whoami", {}) is not None
    assert closed(far, "account_tool_instances", instance) == "deleted"
    far.world.await_condition(kept, "Ready", "True")
    assert far.host.containers(running_only=True) == [kept_container]


def test_what_is_abandoned_while_its_host_is_away_is_swept_when_the_host_returns(far: FarToolbox) -> None:
    server, kept = far.ready_server("time"), far.ready_server("kept")
    connection, other = far.ready_connection("bot", server), far.ready_connection("other", kept)
    instance = far.instance(server)
    uid = str(far.world.status(other)["connectionId"])
    secret = far.space.secret(other.name)
    leave(far)
    for target in (connection, other, server):
        far.space.delete(target, wait=False)
        far.world.await_condition(target, "Ready", "False", "CleanupBlocked")
        far.world.patch(target, ABANDON)
    gone(far, connection, other, server)
    for target in (other, server):
        assert "in contact again" in far.world.await_event(target, "Abandoned")
    assert closed(far, "account_tool_instances", instance) == "abandoned"
    assert closed(far, "agent_mcp_connections", uid) == "abandoned"
    assert len(far.host.containers(instance, running_only=True)) == 1
    assert far.world.refusal(secret, "whoami", {}) is None
    far.host.heal()
    until("swept", lambda: far.host.containers(instance), lambda left: not left, seconds=60)
    until("no grant", far.host.grants, lambda left: not left)
    assert far.world.refusal(secret, "whoami", {}) is not None
    far.world.await_condition(kept, "Ready", "True")
    assert far.host.containers(running_only=True) == [far.container(kept)]


def test_what_is_edited_while_its_host_is_away_is_taken_over_when_it_returns(far: FarToolbox) -> None:
    server, stopping = far.ready_server("time"), far.ready_server("stopping")
    connection = far.ready_connection("bot", server)
    before = far.container(server)
    leave(far)
    far.world.patch(server, {"spec": {"env": [{"name": "VERSION", "value": "2"}]}})
    far.world.patch(stopping, {"spec": {"state": "Stopped"}})
    pending = far.world.await_condition(server, "Ready", "False", "ToolboxNotReady")
    assert "cannot be reached" in pending["message"]
    far.world.patch(connection, {"spec": {"active": False}})
    revoking = far.world.await_condition(connection, "Programmed", "False", "RevocationPending")
    assert "not known to have taken this over" in revoking["message"]
    assert far.refusal(connection) is None, "status says that it is not revoked yet, and it is not"
    assert far.host.containers(far.instance(server), running_only=True) == [before]
    far.host.heal()
    far.world.await_condition(connection, "Programmed", "True")
    assert far.refusal(connection) is not None
    far.world.await_condition(server, "Ready", "True")
    assert far.world.status(server)["serverInfo"]["version"] == "2"
    far.world.await_status(stopping, phase="Stopped")
    assert far.host.containers(running_only=True) == [far.container(server)]
    assert far.container(server) != before

"""MCPServers from create to gone, on fakes."""

from __future__ import annotations

from typing import Any

import pytest

from support.reconcilers.world import NS, World, world
from toolbox_dtma.wire import InstancePhase, InstanceReason
from toolbox_operator.api.meta import (
    ANNOTATION_ABANDON,
    ANNOTATION_INSTANCE_ID,
    FINALIZER_CLEANUP,
    FINALIZER_IN_USE,
    Key,
    Kind,
)
from toolbox_operator.kube.api import MCP_SERVERS, SECRETS, TOOLBOXES

pytestmark = pytest.mark.component

SERVER = Kind.MCP_SERVER


async def deployed(w: World) -> tuple[Key, Key]:
    toolbox, server = w.toolbox(), w.server()
    await w.settle()
    assert w.ready(SERVER, server) == ("True", "Ready")
    return toolbox, server


async def test_a_server_becomes_ready_once_its_host_answers_for_this_spec() -> None:
    async with world() as w:
        toolbox, server = await deployed(w)
        assert w.ready(Kind.TOOLBOX, toolbox) == ("True", "Ready")
        status = w.status(SERVER, server)
        assert status["phase"] == "Active"
        assert status["endpoint"].endswith(f"/servers/{status['instanceId']}/mcp")
        assert [tool["name"] for tool in status["tools"]] == ["get_time", "get_zone", "set_zone"]
        assert status["resolved"]["memory"] == "512Mi"
        assert w.status(Kind.TOOLBOX, toolbox)["servers"] == 1
        row = w.store.rows[status["instanceId"]]
        assert row.status == "active"


async def test_nothing_is_written_while_nothing_changes() -> None:
    async with world() as w:
        await deployed(w)
        w.kube.writes.clear()
        w.machine().calls.clear()
        await w.restart()
        w.queue.add(SERVER, Key(NS, "time"))
        w.queue.add(Kind.TOOLBOX, Key(NS, "tbx-1"))
        await w.settle()
        assert w.kube.writes == []
        assert [call for call in w.machine().calls if call.startswith("put")] == []


async def test_finalizer_and_instance_id_are_written_before_the_host_is_told() -> None:
    async with world() as w:
        seen: list[tuple[bool, bool, bool]] = []

        def look(call: str) -> None:
            if call.startswith("put_instance"):
                meta = w.body(SERVER, Key(NS, "time"))["metadata"]
                toolbox = w.body(Kind.TOOLBOX, Key(NS, "tbx-1"))["metadata"]
                seen.append(
                    (
                        FINALIZER_CLEANUP in meta["finalizers"],
                        meta["annotations"][ANNOTATION_INSTANCE_ID] == meta["uid"],
                        FINALIZER_IN_USE in toolbox["finalizers"],
                    )
                )

        w.machine().before_call = look
        await deployed(w)
        assert seen == [(True, True, True)]


async def test_an_instance_id_that_came_with_the_object_is_kept() -> None:
    async with world() as w:
        w.toolbox()
        wanted = "0f2d3c4b-5a69-4788-9c0d-1e2f3a4b5c6d"
        server = w.server(annotations={ANNOTATION_INSTANCE_ID: wanted})
        await w.settle()
        assert w.status(SERVER, server)["instanceId"] == wanted
        assert list(w.machine().desired) == [wanted]


async def test_a_stopped_server_is_not_ready_and_not_stalled_and_starts_again() -> None:
    async with world() as w:
        _, server = await deployed(w)
        w.patch(SERVER, server, state="Stopped")
        await w.settle()
        assert w.status(SERVER, server)["phase"] == "Stopped"
        assert w.ready(SERVER, server) == ("False", "Stopped")
        assert w.condition(SERVER, server, "Stalled") == ("", "")
        assert w.condition(SERVER, server, "Reconciling") == ("", "")
        w.patch(SERVER, server, state="Running")
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")


async def test_an_exit_is_an_error_with_the_hosts_reason_and_an_event_and_recovery_is_seen() -> None:
    async with world() as w:
        _, server = await deployed(w)
        w.machine().set_outcome((InstancePhase.ERROR, InstanceReason.CONTAINER_EXITED, "exit code 1"))
        await w.settle()
        assert w.status(SERVER, server)["phase"] == "Error"
        assert w.ready(SERVER, server) == ("False", "ContainerExited")
        assert w.condition(SERVER, server, "Reconciling") == ("True", "ContainerExited")
        assert w.events.items[-1][:3] == ("time", "Warning", "ContainerExited")
        w.machine().set_outcome(None)
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert w.events.items[-1][:3] == ("time", "Normal", "Ready")


async def test_a_missing_secret_is_waited_for_and_a_changed_value_rolls_the_server_at_resync() -> None:
    async with world() as w:
        w.toolbox()
        env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}]
        server = w.server(env=env)
        await w.settle()
        assert w.condition(SERVER, server, "ResolvedRefs") == ("False", "SecretNotFound")
        assert w.machine().desired == {}
        w.secret("keys", b="1")
        await w.advance(6)
        assert w.condition(SERVER, server, "ResolvedRefs") == ("False", "SecretKeyNotFound")
        w.secret("keys", a="1")
        await w.advance(6)
        assert w.ready(SERVER, server) == ("True", "Ready")
        (desired,) = w.machine().desired.values()
        assert desired.env[0].value == "1"
        w.secret("keys", a="2")
        await w.advance(601)
        (desired,) = w.machine().desired.values()
        assert desired.env[0].value == "2"
        assert w.ready(SERVER, server) == ("True", "Ready")


async def test_a_server_waits_for_its_toolbox_and_for_permission() -> None:
    async with world() as w:
        server = w.server(namespace="team-a")
        await w.settle()
        assert w.condition(SERVER, server, "Accepted") == ("False", "ToolboxNotFound")
        toolbox = w.toolbox()
        await w.settle()
        assert w.condition(SERVER, server, "Accepted") == ("False", "NotPermitted")
        assert w.machine().desired == {}
        w.patch(Kind.TOOLBOX, toolbox, allowedServers={"namespaces": {"from": "All"}})
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")


async def test_a_server_whose_toolbox_no_watch_has_shown_yet_is_not_told_that_there_is_none() -> None:
    async with world() as w:
        with w.unseen():
            w.toolbox()
        server = w.server()
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert "ToolboxNotFound" not in w.events.reasons(server.name)


async def test_of_two_servers_with_one_instance_id_the_younger_one_is_stalled_until_the_other_is_gone() -> None:
    async with world() as w:
        _, first = await deployed(w)
        instance = w.status(SERVER, first)["instanceId"]
        second = w.server("other", annotations={ANNOTATION_INSTANCE_ID: instance})
        await w.settle()
        assert w.condition(SERVER, second, "Stalled") == ("True", "InstanceIdInUse")
        assert w.ready(SERVER, first) == ("True", "Ready")
        w.delete(SERVER, second)
        await w.settle()
        assert not w.exists(SERVER, second)
        assert list(w.machine().desired) == [instance]


@pytest.mark.parametrize("instance_id", ["x", "0F2D3C4B-5A69-4788-9C0D-1E2F3A4B5C6D", "{}", "../../etc"])
async def test_an_instance_id_that_is_no_uuid_is_stalled_and_never_reaches_a_host(instance_id: str) -> None:
    async with world() as w:
        w.toolbox()
        server = w.server(annotations={ANNOTATION_INSTANCE_ID: instance_id})
        await w.settle()
        assert w.condition(SERVER, server, "Stalled") == ("True", "InstanceIdInvalid")
        assert w.machine().desired == {}


async def test_an_instance_id_that_changes_later_is_stalled_and_the_container_stays() -> None:
    async with world() as w:
        _, server = await deployed(w)
        before = dict(w.machine().desired)
        w.annotate(SERVER, server, ANNOTATION_INSTANCE_ID, "0f2d3c4b-5a69-4788-9c0d-1e2f3a4b5c6d")
        await w.settle()
        assert w.condition(SERVER, server, "Stalled") == ("True", "InstanceIdInvalid")
        assert w.machine().desired == before


async def test_a_server_is_removed_under_the_id_it_ran_under_whatever_its_annotation_says_by_then() -> None:
    async with world() as w:
        w.toolbox()
        key = w.server()
        await w.settle()
        instance_id = w.status(Kind.MCP_SERVER, key)["instanceId"]
        w.annotate(Kind.MCP_SERVER, key, ANNOTATION_INSTANCE_ID, "not-a-uuid")
        await w.settle()
        w.delete(Kind.MCP_SERVER, key)
        left: list[set[str]] = []
        release = w.kube.merge_patch

        async def observed(*args: Any, **kwargs: Any) -> Any:
            left.append(set(w.machine().desired))
            return await release(*args, **kwargs)

        w.kube.merge_patch = observed
        await w.settle()
        assert not w.exists(Kind.MCP_SERVER, key)
        assert left[0] == set(), "the finalizer went before the container"
        assert w.store.closed == {instance_id: "deleted"}


async def test_a_broken_spec_is_stalled_and_leaves_what_runs_alone_until_it_is_repaired() -> None:
    async with world() as w:
        _, server = await deployed(w)
        before = dict(w.machine().desired)
        w.patch(SERVER, server, image="UPPER CASE")
        await w.settle()
        assert w.condition(SERVER, server, "Stalled") == ("True", "SpecInvalid")
        w.patch(SERVER, server, image="a/b:2", toolboxRef={"name": "another"})
        await w.settle()
        assert w.condition(SERVER, server, "Stalled") == ("True", "ImmutableField")
        assert w.machine().desired == before
        w.patch(SERVER, server, toolboxRef={"name": "tbx-1"})
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert next(iter(w.machine().desired.values())).image == "a/b:2"


async def test_within_the_lease_a_lost_host_changes_nothing_but_its_toolbox_then_its_servers_are_unknown() -> None:
    async with world() as w:
        toolbox, server = await deployed(w)
        before = w.body(SERVER, server)
        w.machine().cut()
        await w.until(lambda: w.status(Kind.TOOLBOX, toolbox)["phase"] == "Unreachable", "the outage is noticed")
        await w.advance(30)
        assert w.body(SERVER, server) == before
        assert w.condition(Kind.TOOLBOX, toolbox, "Reachable") == ("False", "HostUnreachable")
        await w.advance(15)
        assert w.status(Kind.TOOLBOX, toolbox)["phase"] == "Lost"
        assert w.status(SERVER, server)["phase"] == "Unknown"
        assert w.ready(SERVER, server) == ("Unknown", "HostLost")
        w.machine().heal()
        await w.until(lambda: w.ready(SERVER, server) == ("True", "Ready"), "the server is ready again")
        assert w.status(Kind.TOOLBOX, toolbox)["phase"] == "Ready"


async def test_a_restart_while_the_host_is_away_changes_nothing_before_the_lease_is_over() -> None:
    async with world() as w:
        _, server = await deployed(w)
        before = w.body(SERVER, server)
        w.machine().cut()
        await w.restart()
        await w.settle()
        await w.advance(30)
        assert w.body(SERVER, server) == before
        await w.advance(15)
        assert w.status(SERVER, server)["phase"] == "Unknown"


async def test_deleting_a_server_empties_the_host_closes_the_row_and_lets_the_secrets_go() -> None:
    async with world() as w:
        toolbox, server = await deployed(w)
        instance = w.status(SERVER, server)["instanceId"]
        secret = Key(NS, "tbx-1-dtma")
        assert FINALIZER_IN_USE in w.kube.objects[(SECRETS.plural, secret)]["metadata"]["finalizers"]
        w.delete(SERVER, server)
        await w.settle()
        assert not w.exists(SERVER, server)
        assert w.machine().desired == {}
        assert w.store.closed[instance] == "deleted"
        assert FINALIZER_IN_USE not in w.body(Kind.TOOLBOX, toolbox)["metadata"]["finalizers"]
        assert not w.kube.objects[(SECRETS.plural, secret)]["metadata"].get("finalizers")


async def test_deleting_everything_at_once_with_the_secrets_still_cleans_the_host() -> None:
    async with world() as w:
        toolbox, server = await deployed(w)
        connection = w.connection()
        await w.settle()
        await w.restart()
        w.kube.remove(SECRETS, Key(NS, "tbx-1-dtma"))
        for kind, key in ((Kind.TOOLBOX, toolbox), (SERVER, server), (Kind.CONNECTION, connection)):
            w.delete(kind, key)
        await w.until(lambda: w.kube.objects == {}, "everything is gone")
        assert w.machine().desired == {}
        assert w.machine().grants == {}
        assert set(w.store.closed.values()) == {"deleted"}


async def test_what_was_deleted_while_no_operator_ran_goes_without_an_alarm() -> None:
    async with world() as w:
        _, server = await deployed(w)
        connection = w.connection()
        await w.settle()
        w.delete(SERVER, server)
        w.delete(Kind.CONNECTION, connection)
        await w.restart()
        await w.settle()
        assert not w.exists(SERVER, server)
        assert not w.exists(Kind.CONNECTION, connection)
        assert [event for event in w.events.items if event[1] == "Warning"] == []


async def test_a_blocked_cleanup_names_the_annotation_that_breaks_the_glass() -> None:
    async with world() as w:
        toolbox, server = await deployed(w)
        w.machine().cut()
        await w.until(lambda: w.status(Kind.TOOLBOX, toolbox)["phase"] == "Unreachable", "the outage is noticed")
        w.delete(SERVER, server)
        await w.settle()
        assert w.status(SERVER, server)["phase"] == "Deleting"
        assert w.ready(SERVER, server) == ("False", "CleanupBlocked")
        message = next(c["message"] for c in w.status(SERVER, server)["conditions"] if c["type"] == "Ready")
        assert f'{ANNOTATION_ABANDON}="true"' in message
        w.annotate(SERVER, server, ANNOTATION_ABANDON, "true")
        await w.settle()
        assert not w.exists(SERVER, server)
        assert "Abandoned" in w.events.reasons("time")
        assert [reason for _, reason in w.store.logged] == ["Abandoned"]
        assert len(w.machine().desired) == 1
        w.machine().heal()
        await w.until(lambda: w.machine().desired == {}, "the orphan is swept")


async def test_a_toolbox_on_its_way_out_waits_for_its_servers_and_names_them() -> None:
    async with world() as w:
        toolbox, server = await deployed(w)
        w.delete(Kind.TOOLBOX, toolbox)
        await w.settle()
        assert w.status(Kind.TOOLBOX, toolbox)["phase"] == "Deleting"
        assert w.ready(Kind.TOOLBOX, toolbox) == ("False", "InUse")
        assert any("MCPServer mcp-system/time" in note for name, _, _, note in w.events.items if name == "tbx-1")
        assert len(w.machine().desired) == 1
        w.delete(SERVER, server)
        await w.settle()
        assert not w.exists(Kind.TOOLBOX, toolbox)
        assert w.machine().desired == {}


async def test_a_server_deleted_with_its_unreachable_toolbox_is_abandoned_at_once() -> None:
    async with world() as w:
        toolbox, server = await deployed(w)
        w.machine().cut()
        await w.until(lambda: w.status(Kind.TOOLBOX, toolbox)["phase"] == "Unreachable", "the outage is noticed")
        w.delete(Kind.TOOLBOX, toolbox)
        w.delete(SERVER, server)
        await w.settle()
        assert not w.exists(SERVER, server)
        assert not w.exists(Kind.TOOLBOX, toolbox)
        assert "Abandoned" in w.events.reasons("time")


async def test_a_server_whose_toolbox_vanished_by_force_can_be_deleted() -> None:
    async with world() as w:
        toolbox, server = await deployed(w)
        w.kube.edit(TOOLBOXES, toolbox, {"metadata": {"finalizers": []}})
        w.delete(Kind.TOOLBOX, toolbox)
        await w.settle()
        assert w.condition(SERVER, server, "Accepted") == ("False", "ToolboxNotFound")
        w.delete(SERVER, server)
        await w.settle()
        assert not w.exists(SERVER, server)
        assert "Abandoned" in w.events.reasons("time")


async def test_a_server_removed_by_force_is_swept_from_the_host() -> None:
    async with world() as w:
        _, server = await deployed(w)
        w.kube.edit(MCP_SERVERS, server, {"metadata": {"finalizers": []}})
        w.delete(SERVER, server)
        await w.settle()
        assert w.machine().desired == {}


async def test_a_server_created_again_under_its_name_gets_a_container_of_its_own() -> None:
    async with world() as w:
        _, server = await deployed(w)
        first = w.status(SERVER, server)["instanceId"]
        w.delete(SERVER, server)
        await w.settle()
        w.server()
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert w.status(SERVER, server)["instanceId"] != first
        assert len(w.machine().desired) == 1


async def test_a_server_that_never_got_to_a_host_leaves_without_one() -> None:
    async with world() as w:
        server = w.server()
        await w.settle()
        w.delete(SERVER, server)
        await w.settle()
        assert not w.exists(SERVER, server)
        assert w.store.logged == []


async def test_a_defect_shows_in_status_and_still_reaches_the_worker_that_logs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as w:
        _, server = await deployed(w)

        def broken(_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("toolbox_operator.reconcile.mcpserver.contact_hold", broken)
        with pytest.raises(ZeroDivisionError):
            await w.reconcilers[SERVER].reconcile(server)
        assert w.ready(SERVER, server) == ("False", "InternalError")
        monkeypatch.undo()
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")

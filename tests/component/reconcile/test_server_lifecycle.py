"""MCPServers and what becomes of them while they are wanted, on fakes."""

from __future__ import annotations

from typing import Any

import pytest

from support.reconcilers.world import NS, world
from toolbox_dtma.wire import InstancePhase, InstanceReason
from toolbox_operator.api.meta import (
    ANNOTATION_INSTANCE_ID,
    FINALIZER_CLEANUP,
    FINALIZER_IN_USE,
    Key,
    Kind,
)

pytestmark = pytest.mark.component

SERVER = Kind.MCP_SERVER


async def test_a_server_becomes_ready_once_its_host_answers_for_this_spec() -> None:
    async with world() as w:
        toolbox, server = await w.deployed()
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
        await w.deployed()
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
        await w.deployed()
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
        _, server = await w.deployed()
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
        _, server = await w.deployed()
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
        _, first = await w.deployed()
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
        _, server = await w.deployed()
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
        _, server = await w.deployed()
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
        toolbox, server = await w.deployed()
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
        _, server = await w.deployed()
        before = w.body(SERVER, server)
        w.machine().cut()
        await w.restart()
        await w.settle()
        await w.advance(30)
        assert w.body(SERVER, server) == before
        await w.advance(15)
        assert w.status(SERVER, server)["phase"] == "Unknown"


async def test_a_defect_shows_in_status_and_still_reaches_the_worker_that_logs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as w:
        _, server = await w.deployed()

        def broken(_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("toolbox_operator.reconcile.mcpserver.contact_hold", broken)
        with pytest.raises(ZeroDivisionError):
            await w.reconcilers[SERVER].reconcile(server)
        assert w.ready(SERVER, server) == ("False", "InternalError")
        monkeypatch.undo()
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")

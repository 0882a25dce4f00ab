"""MCPServers on their way out, on fakes."""

from __future__ import annotations

import pytest

from support.reconcilers.world import NS, world
from toolbox_operator.api.meta import (
    ANNOTATION_ABANDON,
    FINALIZER_IN_USE,
    Key,
    Kind,
)
from toolbox_operator.kube.api import MCP_SERVERS, SECRETS, TOOLBOXES

pytestmark = pytest.mark.component

SERVER = Kind.MCP_SERVER


async def test_deleting_a_server_empties_the_host_closes_the_row_and_lets_the_secrets_go() -> None:
    async with world() as w:
        toolbox, server = await w.deployed()
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
        toolbox, server = await w.deployed()
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
        _, server = await w.deployed()
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
        toolbox, server = await w.deployed()
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
        toolbox, server = await w.deployed()
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
        toolbox, server = await w.deployed()
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
        toolbox, server = await w.deployed()
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
        _, server = await w.deployed()
        w.kube.edit(MCP_SERVERS, server, {"metadata": {"finalizers": []}})
        w.delete(SERVER, server)
        await w.settle()
        assert w.machine().desired == {}


async def test_a_server_created_again_under_its_name_gets_a_container_of_its_own() -> None:
    async with world() as w:
        _, server = await w.deployed()
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

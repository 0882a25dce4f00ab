"""What a server's tools do to its status, its Events and its connections, on fakes."""

from __future__ import annotations

from typing import Any

import pytest

from support.reconcilers.memory_machine import TOOLS, surface_hash
from support.reconcilers.world import World, world
from toolbox_dtma.wire import InstancePhase, InstanceReason
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.store.api import InstanceRow

pytestmark = pytest.mark.component

SERVER = Kind.MCP_SERVER
CHANGED = "ToolsChanged"
OTHER = {"get_time": "2", "get_zone": "1", "more": "1"}


async def deployed(w: World, **expose: Any) -> Key:
    w.toolbox()
    server = w.server(expose={"tools": expose})
    await w.settle()
    assert w.ready(SERVER, server) == ("True", "Ready")
    return server


def message(w: World, server: Key) -> str:
    found = [c["message"] for c in w.status(SERVER, server)["conditions"] if c["type"] == CHANGED]
    return found[0] if found else ""


def told(w: World) -> list[tuple[str, str, str]]:
    """Events about tools: type, reason and note."""
    return [(item[1], item[2], item[3]) for item in w.events.items if item[2].startswith("Tools")]


async def test_status_and_record_hold_the_hashes() -> None:
    async with world() as w:
        server = await deployed(w)
        status = w.status(SERVER, server)
        assert status["toolsHash"] == surface_hash(dict.fromkeys(TOOLS, "1"))
        assert status["toolsGeneration"] == 1
        assert status["tools"][0] == {"name": "get_time", "description": "", "hash": "sha256:1"}
        assert w.condition(SERVER, server, CHANGED) == ("", "") and told(w) == []
        row = w.store.rows[status["instanceId"]]
        assert isinstance(row, InstanceRow) and row.tools is not None and row.tools[0]["hash"] == "sha256:1"


@pytest.mark.parametrize("seen_stopping", [True, False])
async def test_a_server_that_is_stopped_tells_of_its_tools_what_it_told_before(seen_stopping: bool) -> None:
    async with world() as w:
        server = await deployed(w)
        w.machine().show(**OTHER)
        await w.settle()
        if seen_stopping:
            # What a host reports while the container still runs: the newest spec, and the probe from before.
            w.machine().set_outcome((InstancePhase.PENDING, InstanceReason.STOPPED, ""))
        w.patch(SERVER, server, state="Stopped")
        await w.settle()
        w.machine().set_outcome(None)
        await w.settle()
        status = w.status(SERVER, server)
        assert status["phase"] == "Stopped" and status["toolsGeneration"] == 1
        assert w.condition(SERVER, server, CHANGED) == ("True", CHANGED)
        w.patch(SERVER, server, state="Running")
        await w.settle()
        assert w.status(SERVER, server)["toolsGeneration"] == 3
        assert w.condition(SERVER, server, CHANGED) == ("", "")


async def test_tools_that_change_by_themselves_are_told_and_the_server_stays_ready() -> None:
    async with world() as w:
        server = await deployed(w)
        w.machine().show(**OTHER)
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert w.condition(SERVER, server, CHANGED) == ("True", CHANGED)
        assert surface_hash(OTHER) == w.status(SERVER, server)["toolsHash"] and surface_hash(OTHER) in message(
            w, server
        )
        note = "The tools changed: added more; removed set_zone; changed get_time."
        assert told(w) == [("Warning", CHANGED, note)]
        # Only the next edit ends it, not an exit and not a restart of the operator.
        w.machine().set_outcome((InstancePhase.ERROR, InstanceReason.CONTAINER_EXITED, "exit code 1"))
        await w.settle()
        assert w.condition(SERVER, server, CHANGED) == ("True", CHANGED)
        w.machine().set_outcome(None)
        await w.restart()
        await w.settle()
        assert w.condition(SERVER, server, CHANGED) == ("True", CHANGED)
        w.patch(SERVER, server, env=[{"name": "X", "value": "1"}])
        await w.settle()
        assert w.condition(SERVER, server, CHANGED) == ("", "")
        assert len(told(w)) == 1


async def test_other_tools_after_an_edit_are_told_as_ordinary() -> None:
    async with world() as w:
        server = await deployed(w)
        w.machine().tools = dict(OTHER)
        w.patch(SERVER, server, args=["--more"])
        await w.settle()
        assert w.condition(SERVER, server, CHANGED) == ("", "")
        assert [(type_, reason) for type_, reason, _ in told(w)] == [("Normal", CHANGED)]


async def test_pinned_tools_that_change_are_hidden_until_the_new_hash_is_accepted() -> None:
    async with world() as w:
        server = await deployed(w, approvedHash=surface_hash(dict.fromkeys(TOOLS, "1")))
        connection = w.connection()
        await w.settle()
        assert w.condition(SERVER, server, CHANGED) == ("", "") and told(w) == []
        assert w.status(Kind.CONNECTION, connection)["tools"] == 3
        w.machine().show(**OTHER)
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert w.condition(SERVER, server, CHANGED) == ("True", "ToolsNotApproved")
        assert "get_time, more" in message(w, server)
        assert w.status(Kind.CONNECTION, connection)["tools"] == 1
        accept = w.status(SERVER, server)["toolsHash"]
        assert accept in message(w, server)
        w.patch(SERVER, server, expose={"tools": {"approvedHash": accept}})
        await w.settle()
        assert w.condition(SERVER, server, CHANGED) == ("", "")
        assert w.status(Kind.CONNECTION, connection)["tools"] == 3
        (grant,) = w.machine().grants.values()
        assert grant.server_expose.approved_hash == accept and grant.expose.approved_hash is None
        assert [(type_, reason) for type_, reason, _ in told(w)] == [
            ("Warning", "ToolsNotApproved"),
            ("Normal", "ToolsApproved"),
        ]


async def test_a_hash_of_nothing_known_hides_everything_and_says_what_to_set() -> None:
    async with world() as w:
        server = await deployed(w, approvedHash=f"sha256:{'0' * 64}")
        assert w.condition(SERVER, server, CHANGED) == ("True", "ToolsNotApproved")
        assert "none may be used" in message(w, server)
        assert w.status(SERVER, server)["toolsHash"] in message(w, server)
        connection = w.connection()
        await w.settle()
        assert w.status(Kind.CONNECTION, connection)["tools"] == 0
        assert w.ready(Kind.CONNECTION, connection) == ("True", "Connected")


async def test_a_list_that_is_another_at_each_probe_makes_one_series_of_events() -> None:
    async with world() as w:
        server = await deployed(w)
        for n in range(40):
            w.machine().show(get_time=f"at {n}", get_zone="1", set_zone="1")
            await w.settle()
        assert w.condition(SERVER, server, CHANGED) == ("True", CHANGED)
        # The recorder makes a series of what has the same type, reason and note.
        assert set(told(w)) == {("Warning", CHANGED, "The tools changed: changed get_time.")}
        writes = len(w.kube.writes)
        w.queue.add(SERVER, server)
        await w.settle()
        assert len(w.kube.writes) == writes and len(told(w)) == 40


async def test_a_pin_on_a_connection_stalls_it_with_what_to_do() -> None:
    async with world() as w:
        await deployed(w)
        pinned = {"tools": {"approvedHash": f"sha256:{'0' * 64}"}}
        connection = w.connection(expose=pinned)
        await w.settle()
        assert w.ready(Kind.CONNECTION, connection) == ("False", "SpecInvalid")
        assert w.machine().grants == {}

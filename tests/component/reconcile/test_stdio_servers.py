"""MCPServers that speak stdio, on fakes: what the host is told, what status and record say, and how often."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from support.reconcilers.world import NS, World, world
from toolbox_dtma.wire import InstancePhase, InstanceReason, Sessions
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.kube.api import SECRETS, KubeError
from toolbox_operator.store.api import InstanceRow

pytestmark = pytest.mark.component

SERVER = Kind.MCP_SERVER
KEY = Key(NS, "time")


async def deployed(w: World, **spec: Any) -> None:
    """A server that speaks stdio, in a process that has been there for a while."""
    w.toolbox()
    w.stdio_server(**spec)
    await w.settle()
    assert w.ready(SERVER, KEY) == ("True", "Ready")
    await w.advance(120)


def sessions(w: World) -> tuple[int, int]:
    shown = w.status(SERVER, KEY)["sessions"]
    return shown["open"], shown["max"]


def message(w: World, type_: str) -> str:
    (found,) = [each for each in w.status(SERVER, KEY)["conditions"] if each["type"] == type_]
    return found["message"]


def row(w: World) -> InstanceRow:
    found = w.store.rows[w.status(SERVER, KEY)["instanceId"]]
    assert isinstance(found, InstanceRow)
    return found


async def test_a_server_that_speaks_stdio_becomes_ready_without_a_container() -> None:
    async with world() as w:
        await deployed(w, sessions={"maxSessions": 4})
        (desired,) = w.machine().desired.values()
        assert (desired.transport, desired.port, desired.path) == ("stdio", None, None)
        assert desired.sessions == Sessions(max_sessions=4, idle_seconds=1800)
        status = w.status(SERVER, KEY)
        assert "container" not in status
        assert sessions(w) == (0, 4)
        assert [tool["name"] for tool in status["tools"]] == ["get_time", "get_zone", "set_zone"]
        resolved = status["resolved"]
        assert (resolved["transport"], resolved["maxSessions"], resolved["idleTimeout"]) == ("stdio", 4, "30m")
        assert not {"port", "path"} & resolved.keys()


async def test_the_record_has_neither_path_nor_container_of_it() -> None:
    async with world() as w:
        await deployed(w)
        written = row(w)
        assert (written.transport, written.endpoint_path, written.container) == ("stdio", None, None)
        assert written.status == "active"
        w.patch(SERVER, KEY, image="UPPER")
        await w.settle()
        assert (row(w).transport, row(w).endpoint_path) == ("stdio", None)


async def test_agents_get_an_ordinary_url_and_streamable_http() -> None:
    async with world() as w:
        await deployed(w)
        connection = w.connection()
        await w.settle()
        assert w.ready(Kind.CONNECTION, connection) == ("True", "Connected")
        data = w.kube.objects[(SECRETS.plural, Key(NS, "bot-time-mcp"))]["data"]
        plain = {name: base64.b64decode(data[name]).decode() for name in ("transport", "url")}
        assert plain["transport"] == "streamable-http"
        assert plain["url"] == w.status(SERVER, KEY)["endpoint"]
        assert plain["url"].endswith(f"/servers/{w.status(SERVER, KEY)['instanceId']}/mcp")


async def test_a_change_of_sessions_is_told_to_the_host_as_a_new_generation() -> None:
    async with world() as w:
        await deployed(w)
        w.patch(SERVER, KEY, sessions={"maxSessions": 2, "idleTimeout": "5m"})
        await w.settle()
        (desired,) = w.machine().desired.values()
        assert (desired.generation, desired.sessions) == (2, Sessions(max_sessions=2, idle_seconds=300))
        assert sessions(w) == (0, 2)
        assert w.ready(SERVER, KEY) == ("True", "Ready")


async def test_the_transport_cannot_change_where_no_rule_of_the_api_server_keeps_it() -> None:
    async with world() as w:
        await deployed(w)
        before = dict(w.machine().desired)
        w.patch(SERVER, KEY, transport="streamable-http", port=3001)
        await w.settle()
        assert w.condition(SERVER, KEY, "Stalled") == ("True", "ImmutableField")
        assert "create one with the other transport" in message(w, "Stalled")
        assert w.machine().desired == before
        w.patch(SERVER, KEY, transport="stdio", port=None)
        await w.settle()
        assert w.ready(SERVER, KEY) == ("True", "Ready")


async def test_a_process_that_does_not_speak_mcp_is_told_what_it_has_to_do_and_nothing_of_ports() -> None:
    async with world() as w:
        await deployed(w)
        said = "the server wrote a line that is no JSON"
        w.machine().set_outcome((InstancePhase.ERROR, InstanceReason.PROBE_FAILED, said))
        await w.settle()
        assert w.status(SERVER, KEY)["phase"] == "Error"
        assert w.ready(SERVER, KEY) == ("False", "ProbeFailed")
        assert "log to standard error only" in message(w, "Ready")
        assert message(w, "Ready").endswith(f"The host says: {said}.")
        assert "port" not in message(w, "Ready")
        assert w.condition(SERVER, KEY, "Deployed") == ("True", "Deployed")
        assert row(w).error_message == message(w, "Ready")
        w.machine().set_outcome(None)
        await w.settle()
        assert w.ready(SERVER, KEY) == ("True", "Ready")


async def test_a_stopped_server_starts_no_sessions_and_comes_back() -> None:
    async with world() as w:
        await deployed(w)
        w.patch(SERVER, KEY, state="Stopped")
        await w.settle()
        assert (w.status(SERVER, KEY)["phase"], w.ready(SERVER, KEY)) == ("Stopped", ("False", "Stopped"))
        assert message(w, "Deployed") == "No session is started, as specified."
        w.patch(SERVER, KEY, state="Running")
        await w.settle()
        assert w.ready(SERVER, KEY) == ("True", "Ready")


async def test_a_host_that_knows_no_stdio_is_named_as_what_has_to_be_upgraded() -> None:
    async with world() as w:
        w.machine().knows_stdio = False
        w.toolbox()
        w.stdio_server()
        w.server("other")
        await w.settle()
        assert w.ready(SERVER, KEY) == ("False", "HostRejected")
        assert message(w, "Ready") == "The host is too old for this transport: upgrade the host."
        assert w.ready(SERVER, Key(NS, "other")) == ("True", "Ready")
        w.machine().knows_stdio = True
        await w.advance(60)
        assert w.ready(SERVER, KEY) == ("True", "Ready")


async def test_the_number_of_open_sessions_is_shown_at_once_and_then_once_a_minute() -> None:
    async with world() as w:
        await deployed(w)
        w.machine().have_sessions(1)
        await w.settle()
        assert sessions(w) == (1, 10)
        w.kube.writes.clear()
        for number in (2, 3, 2, 5, 4):
            await w.advance(11)
            w.machine().have_sessions(number)
            await w.settle()
        assert w.kube.writes == []
        await w.advance(5)
        assert sessions(w) == (4, 10)
        assert len(w.kube.writes) == 1
        await w.advance(600)
        assert len(w.kube.writes) == 1


async def test_a_number_that_is_the_old_one_again_is_not_written() -> None:
    async with world() as w:
        await deployed(w)
        w.machine().have_sessions(1)
        await w.settle()
        w.kube.writes.clear()
        w.machine().have_sessions(2)
        await w.settle()
        w.machine().have_sessions(1)
        await w.settle()
        await w.advance(600)
        assert w.kube.writes == []


async def test_another_change_takes_the_newest_number_along_and_starts_the_minute_anew() -> None:
    async with world() as w:
        await deployed(w)
        w.machine().have_sessions(1)
        await w.settle()
        await w.advance(20)
        w.machine().have_sessions(2)
        await w.settle()
        assert sessions(w) == (1, 10)
        w.machine().set_outcome((InstancePhase.ERROR, InstanceReason.PROBE_FAILED, "it hangs"))
        await w.settle()
        assert (sessions(w), w.status(SERVER, KEY)["phase"]) == ((2, 10), "Error")
        w.machine().have_sessions(0)
        await w.settle()
        await w.advance(45)
        assert sessions(w) == (2, 10)
        await w.advance(15)
        assert sessions(w) == (0, 10)


async def test_a_new_process_does_not_write_a_number_that_the_one_before_may_just_have_written() -> None:
    async with world() as w:
        await deployed(w)
        w.machine().have_sessions(1)
        await w.settle()
        await w.restart()
        await w.settle()
        w.kube.writes.clear()
        w.machine().have_sessions(2)
        await w.settle()
        await w.advance(59)
        assert w.kube.writes == []
        await w.advance(1)
        assert sessions(w) == (2, 10)


async def test_a_number_that_could_not_be_written_is_tried_again_at_the_pace_of_the_back_off() -> None:
    async with world() as w:
        await deployed(w)

        def refuse(name: str) -> None:
            if name.startswith("status"):
                raise KubeError(500, "etcd is busy")

        w.kube.before_write = refuse
        before = w.passes
        w.machine().have_sessions(1)
        await w.settle()
        assert w.passes - before <= 3
        w.kube.before_write = lambda _: None
        await w.advance(2)
        assert sessions(w) == (1, 10)


async def test_sessions_that_come_and_go_cost_neither_rows_nor_passes_over_connections() -> None:
    async with world() as w:
        await deployed(w)
        w.connection()
        await w.settle()
        await w.advance(120)
        written = row(w)
        passes = w.passes
        for number in range(1, 6):
            w.machine().have_sessions(number)
            await w.settle()
        assert row(w) == written, "the record has no number of sessions"
        assert w.passes - passes <= 8, "one for each report, one for the write, none for the connection"
        w.machine().set_outcome((InstancePhase.ERROR, InstanceReason.PROBE_FAILED, "it hangs"))
        await w.settle()
        before, after = written.observation, row(w).observation
        assert before is not None and after is not None
        assert after.seq > before.seq


async def test_a_server_made_anew_under_its_name_shows_its_sessions_from_the_first_status_on() -> None:
    async with world() as w:
        await deployed(w)
        w.machine().have_sessions(3)
        await w.settle()
        w.delete(SERVER, KEY)
        await w.settle()
        assert not w.exists(SERVER, KEY)
        w.stdio_server()
        await w.settle()
        assert sessions(w) == (3, 10)

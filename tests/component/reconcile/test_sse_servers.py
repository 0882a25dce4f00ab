"""MCPServers of the SSE transport, on fakes: what the host is told, and what status, Secret and record say."""

from __future__ import annotations

import base64

import pytest

from support.reconcilers.world import NS, World, world
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.kube.api import SECRETS
from toolbox_operator.store.api import InstanceRow

pytestmark = pytest.mark.component

KEY = Key(NS, "time")


async def deployed(w: World) -> None:
    """A ready server of the SSE transport."""
    w.toolbox()
    w.server(transport="sse")
    await w.settle()
    assert w.ready(Kind.MCP_SERVER, KEY) == ("True", "Ready")


def row(w: World) -> InstanceRow:
    found = w.store.rows[w.status(Kind.MCP_SERVER, KEY)["instanceId"]]
    assert isinstance(found, InstanceRow)
    return found


async def test_a_server_that_speaks_sse_is_a_container_at_its_own_default_path() -> None:
    async with world() as w:
        await deployed(w)
        (desired,) = w.machine().desired.values()
        assert (desired.transport, desired.port, desired.path, desired.sessions) == ("sse", 3001, "/sse", None)
        status = w.status(Kind.MCP_SERVER, KEY)
        assert (status["resolved"]["transport"], status["resolved"]["path"]) == ("sse", "/sse")
        assert "sessions" not in status and status["container"]["name"]
        assert (row(w).transport, row(w).endpoint_path) == ("sse", "/sse")


async def test_the_record_says_what_was_accepted_also_while_the_spec_says_something_else() -> None:
    async with world() as w:
        await deployed(w)
        w.patch(Kind.MCP_SERVER, KEY, transport="streamable-http")
        await w.settle()
        assert w.condition(Kind.MCP_SERVER, KEY, "Stalled") == ("True", "ImmutableField")
        assert (row(w).transport, row(w).endpoint_path) == ("sse", "/sse")


async def test_agents_get_an_ordinary_url_and_streamable_http() -> None:
    async with world() as w:
        await deployed(w)
        connection = w.connection()
        await w.settle()
        assert w.ready(Kind.CONNECTION, connection) == ("True", "Connected")
        data = w.kube.objects[(SECRETS.plural, Key(NS, "bot-time-mcp"))]["data"]
        plain = {name: base64.b64decode(data[name]).decode() for name in ("transport", "url")}
        assert plain["transport"] == "streamable-http"
        assert plain["url"].endswith(f"/servers/{w.status(Kind.MCP_SERVER, KEY)['instanceId']}/mcp")


async def test_a_host_that_knows_no_sse_is_named_as_what_has_to_be_upgraded() -> None:
    async with world() as w:
        w.machine().knows_sse = False
        w.toolbox()
        w.server(transport="sse")
        await w.settle()
        assert w.ready(Kind.MCP_SERVER, KEY) == ("False", "HostRejected")
        conditions = w.status(Kind.MCP_SERVER, KEY)["conditions"]
        (message,) = [each["message"] for each in conditions if each["type"] == "Ready"]
        assert message == "The host is too old for this transport: upgrade the host."

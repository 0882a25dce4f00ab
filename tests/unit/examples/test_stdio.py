"""The example of a server that speaks stdio goes with the quickstart."""

from __future__ import annotations

from support.crd.cases import as_read
from support.crd.examples import EXAMPLES, load
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.api.parse import parse_server, parse_toolbox
from toolbox_operator.domain.inputs import Inputs, desired_instance, resolve
from toolbox_operator.domain.server import permitted, toolbox_of

OBJECTS = {(kind, Key.of(body)): body for path in EXAMPLES for kind, body in load(path)}


def test_the_host_is_told_of_sessions_and_the_toolbox_is_the_quickstarts() -> None:
    server = parse_server(as_read(OBJECTS[Kind.MCP_SERVER, Key("mcp-system", "everything-stdio")]))
    assert server.problem is None
    assert server.spec is not None
    at = toolbox_of(server)
    assert at is not None
    assert permitted(server, parse_toolbox(as_read(OBJECTS[Kind.TOOLBOX, at])), None)
    inputs = resolve(server.spec, {})
    assert isinstance(inputs, Inputs)
    desired = desired_instance(server, server.spec, inputs)
    assert (desired.transport, desired.port, desired.path) == ("stdio", None, None)
    assert desired.sessions is not None
    assert (desired.sessions.max_sessions, desired.sessions.idle_seconds) == (4, 600)
    assert desired.args == ("stdio",)


def test_its_image_is_one_of_the_quickstart() -> None:
    images = [body["spec"]["image"] for (kind, _), body in OBJECTS.items() if kind is Kind.MCP_SERVER]
    image = OBJECTS[Kind.MCP_SERVER, Key("mcp-system", "everything-stdio")]["spec"]["image"]
    assert images.count(image) > 1

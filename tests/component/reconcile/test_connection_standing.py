"""What stays in force of a connection, and what its status says, while something it needs is missing."""

from __future__ import annotations

from typing import Any

import pytest

from support.certificates import CA_PEM
from support.reconcilers.world import NS, World, world
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.kube.api import MCP_SERVERS, SECRETS

pytestmark = pytest.mark.component

KEY = Key(NS, "bot-time")
SECRET = Key(NS, "bot-time-mcp")
CA = Key(NS, "ca")


async def connected(w: World, **spec: Any) -> None:
    """A connection on a Toolbox whose gateway has a CA of its own."""
    w.secret("ca", ca_dot_crt=CA_PEM)
    w.toolbox(gatewayCASecretRef={"name": "ca", "key": "ca.crt"})
    w.server()
    w.connection(**spec)
    await w.settle()
    assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")


def lose_ca(w: World) -> None:
    """The Secret itself is held by our finalizer; what is in it is not."""
    w.kube.edit(SECRETS, CA, {"data": {"ca.crt": None}})


def condition(w: World, type_: str) -> tuple[str, str]:
    return w.condition(Kind.CONNECTION, KEY, type_)


async def test_a_switched_off_connection_is_disconnected_also_without_its_server() -> None:
    async with world() as w:
        w.toolbox()
        w.connection(active=False)
        await w.settle()
        assert w.status(Kind.CONNECTION, KEY)["phase"] == "Disconnected"
        assert w.ready(Kind.CONNECTION, KEY) == ("False", "Inactive")
        assert condition(w, "Accepted") == ("Unknown", "ServerNotFound")
        assert condition(w, "Programmed") == ("True", "Programmed")
        w.server()
        await w.settle()
        assert w.status(Kind.CONNECTION, KEY)["phase"] == "Disconnected"
        assert condition(w, "Accepted") == ("True", "Accepted")
        w.patch(Kind.CONNECTION, KEY, active=True)
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")


async def test_an_expired_connection_is_expired_also_when_its_server_is_gone() -> None:
    async with world() as w:
        await connected(w, expiresAt="2026-06-01T13:00:00Z")
        w.delete(Kind.MCP_SERVER, Key(NS, "time"))
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("False", "ServerNotFound")
        w.patch(Kind.CONNECTION, KEY, expiresAt="2026-06-01T12:00:00Z")
        await w.settle()
        assert w.status(Kind.CONNECTION, KEY)["phase"] == "Expired"
        assert condition(w, "Programmed") == ("True", "Programmed")


async def test_rows_of_what_never_needed_a_finalizer_are_closed_when_it_goes() -> None:
    async with world() as w:
        w.toolbox()
        server = w.server()
        denied = w.connection(namespace="team-a")
        await w.settle()
        row = w.body(Kind.CONNECTION, denied)["metadata"]["uid"]
        assert w.store.rows[row].status == "denied"
        w.delete(Kind.CONNECTION, denied)
        await w.settle()
        assert w.store.closed == {row: "swept"}
        w.kube.edit(MCP_SERVERS, server, {"metadata": {"finalizers": []}})
        instance = w.status(Kind.MCP_SERVER, server)["instanceId"]
        w.delete(Kind.MCP_SERVER, server)
        await w.settle()
        assert w.store.closed == {row: "swept", instance: "swept"}
        assert w.machine().desired == {}


async def test_switched_off_while_the_host_still_holds_a_grant_of_a_server_removed_by_force_is_pending() -> None:
    async with world() as w:
        await connected(w)
        w.machine().cut()
        await w.until(lambda: w.status(Kind.TOOLBOX, Key(NS, "tbx-1"))["phase"] == "Unreachable", "outage")
        w.kube.edit(MCP_SERVERS, Key(NS, "time"), {"metadata": {"finalizers": []}})
        w.delete(Kind.MCP_SERVER, Key(NS, "time"))
        w.machine().heal()
        await w.until(lambda: w.machine().desired == {}, "swept")
        w.patch(Kind.CONNECTION, KEY, active=False)
        await w.settle()
        await w.advance(31)
        assert w.status(Kind.CONNECTION, KEY)["phase"] == "Disconnected"
        assert condition(w, "Programmed") == ("True", "Programmed")
        assert w.machine().grants == {}


async def test_a_vanished_gateway_ca_leaves_in_force_what_was_and_status_says_so() -> None:
    async with world() as w:
        await connected(w)
        lose_ca(w)
        w.annotate(Kind.CONNECTION, KEY, "example.com/touched", "yes")
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("False", "SecretKeyNotFound")
        assert condition(w, "ResolvedRefs") == ("False", "SecretKeyNotFound")
        assert condition(w, "Programmed") == ("True", "Programmed")
        assert len(w.machine().grants) == 1
        w.secret("ca", ca_dot_crt=CA_PEM)
        await w.advance(6)
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")


async def test_narrowing_is_in_force_also_while_the_gateway_ca_is_missing() -> None:
    async with world() as w:
        await connected(w)
        lose_ca(w)
        w.patch(Kind.CONNECTION, KEY, expose={"tools": {"allow": []}})
        await w.settle()
        (grant,) = w.machine().grants.values()
        assert grant.expose.tools.allow == ()
        assert condition(w, "Programmed") == ("True", "Programmed")
        assert w.ready(Kind.CONNECTION, KEY) == ("False", "SecretKeyNotFound")


async def test_a_token_whose_secret_is_gone_is_dropped_also_while_the_gateway_ca_is_missing() -> None:
    async with world() as w:
        await connected(w)
        lose_ca(w)
        w.kube.remove(SECRETS, SECRET)
        await w.settle()
        (grant,) = w.machine().grants.values()
        assert grant.credentials == ()
        w.secret("ca", ca_dot_crt=CA_PEM)
        await w.advance(6)
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")
        (grant,) = w.machine().grants.values()
        assert len(grant.credentials) == 1


async def test_an_edit_that_cannot_be_taken_over_leaves_in_force_what_was_and_says_that_it_is_not_the_newest() -> None:
    async with world() as w:
        await connected(w)
        (before,) = w.machine().grants.values()
        w.patch(Kind.CONNECTION, KEY, serverRef={"name": "another", "namespace": NS})
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("False", "ImmutableField")
        assert condition(w, "Programmed") == ("False", "ImmutableField")
        assert w.status(Kind.CONNECTION, KEY)["phase"] == "Error"
        (after,) = w.machine().grants.values()
        assert after == before
        w.patch(Kind.CONNECTION, KEY, serverRef={"name": "time", "namespace": NS})
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")

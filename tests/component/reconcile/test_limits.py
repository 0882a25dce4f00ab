"""Limits of a connection: an update of its grant, and a host that is too old to know them."""

from __future__ import annotations

import pytest

from support.reconcilers.world import NS, World, world
from toolbox_dtma.wire import GrantLimits
from toolbox_operator.api.meta import Key, Kind

pytestmark = pytest.mark.component

KEY = Key(NS, "bot-time")


def message(w: World, type_: str) -> str:
    """The message of a condition."""
    (found,) = [each for each in w.status(Kind.CONNECTION, KEY)["conditions"] if each["type"] == type_]
    return found["message"]


async def test_limits_are_part_of_the_grant_and_their_change_an_update_of_it() -> None:
    async with world() as w:
        w.toolbox()
        w.server()
        w.connection(limits={"concurrentCalls": 2})
        await w.settle()
        (before,) = w.machine().grants.values()
        assert before.limits == GrantLimits(concurrent_calls=2)
        w.patch(Kind.CONNECTION, KEY, limits={"concurrentCalls": 1})
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")
        (after,) = w.machine().grants.values()
        assert after.limits == GrantLimits(concurrent_calls=1)
        assert after.credentials == before.credentials
        assert not [call for call in w.machine().calls if call.startswith("delete_grant")]


async def test_a_host_of_before_limits_serves_connections_without_them() -> None:
    async with world() as w:
        w.machine().too_old_for = frozenset({"limits"})
        w.toolbox()
        w.server()
        w.connection()
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")
        puts = w.machine().calls.count("put_grant bot-time")
        await w.advance(700)
        assert w.machine().calls.count("put_grant bot-time") == puts, "its hash is the one that was put"


async def test_a_host_of_before_limits_is_named_as_what_has_to_be_upgraded() -> None:
    async with world() as w:
        w.machine().too_old_for = frozenset({"limits"})
        w.toolbox()
        w.server()
        w.connection(limits={"concurrentCalls": 2})
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("False", "HostRejected")
        assert w.condition(Kind.CONNECTION, KEY, "Programmed") == ("False", "HostRejected")
        expected = "The host is too old to know limits: upgrade the host, or do without in the spec."
        assert message(w, "Ready") == message(w, "Programmed") == expected
        w.machine().too_old_for = frozenset()
        await w.advance(60)
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")


async def test_limits_that_an_old_host_refuses_for_an_open_connection_are_told_as_not_in_force() -> None:
    async with world() as w:
        w.machine().too_old_for = frozenset({"limits"})
        w.toolbox()
        w.server()
        w.connection()
        await w.settle()
        w.patch(Kind.CONNECTION, KEY, limits={"requestsPerMinute": 10})
        await w.settle()
        assert w.condition(Kind.CONNECTION, KEY, "Programmed") == ("False", "RevocationPending")
        assert "upgrade the host" in message(w, "Programmed")
        w.patch(Kind.CONNECTION, KEY, limits=None)
        await w.settle()
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")

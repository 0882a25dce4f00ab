"""What is asked for in the moment in which the watch of a host is being renewed."""

from __future__ import annotations

import asyncio

import pytest

from support.reconcilers.memory_host import FakeHost
from support.reconcilers.world import NS, World, world
from toolbox_dtma.wire import HostFacts, InstanceList
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.hosts.api import HostUnreachable

pytestmark = pytest.mark.component
TOOLBOX = Key(NS, "tbx-1")


class Renewal:
    """Ends the watch of every host and holds the next contact up until `finish`."""

    def __init__(self, w: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world = w
        self._go_on = asyncio.Event()
        facts = FakeHost.facts

        async def slowly(host: FakeHost) -> HostFacts:
            await self._go_on.wait()
            return await facts(host)

        monkeypatch.setattr(FakeHost, "facts", slowly)

    async def begin(self) -> None:
        self._world.clock.advance(5.0)
        self._world.machine().end_watches()
        for _ in range(20):
            await asyncio.sleep(0)
        view = self._world.hosts.view(TOOLBOX)
        assert view is not None and not view.usable

    async def finish(self) -> None:
        self._go_on.set()
        await self._world.settle()
        await self._world.advance(5.0)
        view = self._world.hosts.view(TOOLBOX)
        assert view is not None and view.usable


async def test_what_is_asked_for_while_a_watch_is_renewed_is_done_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as w:
        w.toolbox()
        w.server()
        key = w.connection()
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        renewal = Renewal(w, monkeypatch)
        await renewal.begin()
        w.patch(Kind.CONNECTION, key, active=False)
        await w.settle()
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("False", "RevocationPending")
        await renewal.finish()
        uid = w.body(Kind.CONNECTION, key)["metadata"]["uid"]
        assert w.machine().grants[uid].credentials == ()
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("True", "Programmed")


async def test_a_host_that_says_who_it_is_and_nothing_more_is_lost_after_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = 0

    async def damaged(host: FakeHost) -> InstanceList:
        nonlocal attempts
        attempts += 1
        raise HostUnreachable("the answer is not a valid InstanceList")

    async with world() as w:
        w.toolbox(leaseDuration="20s")
        server = w.server()
        await w.settle()
        monkeypatch.setattr(FakeHost, "list_instances", damaged)
        w.clock.advance(5.0)
        w.machine().end_watches()
        await w.until(lambda: w.status(Kind.TOOLBOX, TOOLBOX)["phase"] == "Unreachable", "the failure shows")
        assert w.ready(Kind.MCP_SERVER, server) == ("True", "Ready")
        earlier = attempts
        w.clock.advance(10.0)
        await w.until(lambda: attempts > earlier, "another attempt, which the host answers in part")
        w.clock.advance(11.0)
        await w.until(lambda: w.status(Kind.TOOLBOX, TOOLBOX)["phase"] == "Lost", "the lease ends")
        assert w.ready(Kind.MCP_SERVER, server) == ("Unknown", "HostLost")


async def test_calls_that_wait_for_a_slow_host_are_not_made_once_contact_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as w:
        w.toolbox()
        await w.settle()
        go_on, calls = asyncio.Event(), 0

        async def stuck(host: FakeHost) -> HostFacts:
            nonlocal calls
            calls += 1
            await go_on.wait()
            raise HostUnreachable("no answer in time")

        monkeypatch.setattr(FakeHost, "facts", stuck)
        host = w.hosts.host(TOOLBOX)
        waiting = [asyncio.create_task(host.facts()) for _ in range(8)]
        await asyncio.sleep(0)
        under_way = calls
        assert 0 < under_way < len(waiting)
        w.machine().cut()
        await w.settle()
        go_on.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, HostUnreachable) for outcome in outcomes)
        assert calls == under_way

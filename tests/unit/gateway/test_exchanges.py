"""What runs ends when its grant does."""

from __future__ import annotations

import asyncio
import datetime
import hashlib

import pytest

from toolbox_dtma.gateway.exchanges import Cause, Exchange, Exchanges
from toolbox_dtma.gateway.state import PolicyState
from toolbox_dtma.link.messages import Change, Delta, GrantPolicy, KeyRing, SigningKey, Snapshot
from toolbox_dtma.wire import Credential, Expose

RING = KeyRing(signing="k", keys=(SigningKey(kid="k", secret="A" * 43),))
START = 1_000_000.0


class World:
    """One grant, and exchanges that wait for ever."""

    def __init__(self) -> None:
        self.now = START
        self.state = PolicyState(unix_clock=lambda: self.now, monotonic=lambda: 0.0, grace_seconds=30)
        self.exchanges = Exchanges(unix_clock=lambda: self.now)
        self.entered: asyncio.Queue[Exchange] = asyncio.Queue()
        self.state.apply(Snapshot(revision=1, part=0, parts=1, change=Change(keyring=RING, grants=(self.grant(),))))
        self.revision = 1

    def grant(self, token: str = "t", *, ends_in: float | None = None) -> GrantPolicy:
        ends = None if ends_in is None else datetime.datetime.fromtimestamp(self.now + ends_in, datetime.UTC)
        digest = hashlib.sha256(token.encode()).hexdigest()
        return GrantPolicy(
            uid="g",
            instance="i",
            credentials=(Credential(value=digest),),
            server_expose=Expose(),
            expose=Expose(),
            expires_at=ends,
        )

    async def hang(self) -> None:
        with self.exchanges.enter(self.state.authenticate("t")[0], None) as exchange:
            self.entered.put_nowait(exchange)
            await asyncio.Event().wait()

    async def running(self) -> tuple[Exchange, asyncio.Task[None]]:
        task = asyncio.create_task(self.hang())
        return await self.entered.get(), task

    def put(self, change: Change) -> list[asyncio.Task[object]]:
        self.revision += 1
        applied = self.state.apply(Delta(revision=self.revision, change=change))
        assert applied is not None
        return self.exchanges.recheck(applied.touched, self.state)


async def test_a_deleted_grant_ends_its_exchanges() -> None:
    world = World()
    exchange, task = await world.running()
    assert world.put(Change(grants_gone=("g",))) == [task]
    with pytest.raises(asyncio.CancelledError):
        await task
    assert exchange.aborted is Cause.REVOKED and world.exchanges.count == 0


async def test_a_dropped_credential_ends_what_it_began() -> None:
    world = World()
    _, task = await world.running()
    assert world.put(Change(grants=(world.grant("another"),))) == [task]


async def test_another_grant_leaves_it_alone() -> None:
    world = World()
    exchange, task = await world.running()
    assert world.put(Change(grants_gone=("someone else",))) == []
    assert exchange.aborted is None
    task.cancel()


async def test_an_expiry_that_is_put_later_ends_what_runs_already() -> None:
    world = World()
    exchange, task = await world.running()
    assert world.put(Change(grants=(world.grant(ends_in=0.05),))) == []
    world.now += 1
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert exchange.aborted is Cause.REVOKED


async def test_a_clock_that_went_back_does_not_end_anything_early() -> None:
    world = World()
    exchange, task = await world.running()
    world.put(Change(grants=(world.grant(ends_in=0.01),)))
    world.now -= 10
    timer = exchange.timer
    await asyncio.wait({task}, timeout=0.1)
    assert exchange.aborted is None and exchange.timer is not timer
    task.cancel()


async def test_stopping_ends_streams_only() -> None:
    world = World()
    stream, stream_task = await world.running()
    stream.listening = True
    call, call_task = await world.running()
    world.exchanges.abort_all(Cause.STOPPING, listening_only=True)
    await asyncio.wait({stream_task}, timeout=5)
    assert (stream.aborted, call.aborted) == (Cause.STOPPING, None)
    call_task.cancel()

"""The registry of hosts and its client against a real DTMA over TLS, with a fake engine behind it."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from support.async_poll import until
from support.dtma.host import DtmaHost
from support.dtma.wanted import DESIRED, GRANT, INSTANCE, settings_of
from support.dtma.worker import ScriptedWorker, connected
from support.reconcilers.fakes import Asked, Leading
from toolbox_dtma.wire import InstancePhase, ProblemCode, canonical_hash
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.domain.host import HostState, HostView
from toolbox_operator.hosts.api import HostProblem
from toolbox_operator.hosts.registry import Hosts
from toolbox_operator.runtime import SystemClock, Timings

pytestmark = pytest.mark.component

TIMINGS = Timings(backoff_first=0.05, backoff_max=0.2)
TOOLBOX = Key("mcp-system", "tbx-1")


@pytest_asyncio.fixture
async def dtma() -> AsyncGenerator[DtmaHost]:
    with tempfile.TemporaryDirectory(prefix="dtma-") as folder:
        os.chmod(folder, 0o755)  # the gateway's user has to enter it
        host = DtmaHost(Path(folder))
        await host.start()
        try:
            async with connected(ScriptedWorker(), host.socket_path):
                yield host
        finally:
            await host.stop()


class Operator:
    """Hosts of one operator process, with one Toolbox."""

    def __init__(self, dtma: DtmaHost, leadership: Leading, timings: Timings):
        self.queue = Asked()
        self.hosts = Hosts(
            leadership=leadership,
            queue=self.queue,
            clock=SystemClock(),
            timings=timings,
            rng=random.Random(1),
        )
        self._dtma = dtma

    async def ensure(self, token: str | None = None) -> None:
        await self.hosts.ensure(TOOLBOX, "toolbox-uid", settings_of(self._dtma, token), lease=40.0)

    def view(self) -> HostView:
        view = self.hosts.view(TOOLBOX)
        assert view is not None
        return view

    async def reachable(self) -> None:
        await self.ensure()
        await until("identified", lambda: self.view().host_id)
        self.hosts.admit(TOOLBOX, self.view().host_id or "")
        await until("reachable", lambda: self.view().state, lambda state: state is HostState.REACHABLE)


@asynccontextmanager
async def operator(
    dtma: DtmaHost, leadership: Leading | None = None, timings: Timings = TIMINGS
) -> AsyncGenerator[Operator]:
    made = Operator(dtma, leadership or Leading(epoch=3), timings)
    try:
        yield made
    finally:
        await made.hosts.aclose()


async def test_a_host_is_claimed_and_identified_but_not_used_before_it_is_admitted(dtma: DtmaHost) -> None:
    async with operator(dtma) as op:
        await op.ensure()
        await until("identified", lambda: op.view().state, lambda state: state is HostState.IDENTIFIED)
        assert op.view().facts is not None
        assert not op.view().usable
        assert (Kind.TOOLBOX, TOOLBOX) in op.queue.now


async def test_contact_that_is_woken_while_it_is_told_to_end_ends(dtma: DtmaHost) -> None:
    for turns in range(6):
        async with operator(dtma, timings=Timings()) as op:
            await op.ensure()
            await until("identified", lambda: op.view().state, lambda state: state is HostState.IDENTIFIED)
            # This is what it waits for, up to half a minute.
            op.hosts.admit(TOOLBOX, op.view().host_id or "")
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = asyncio.create_task(op.hosts.aclose())
            # Not `wait_for`, whose own cancellation would end it.
            await asyncio.wait({ended}, timeout=20)
            assert ended.done(), f"{turns} turns of the loop after it was woken"
            ended.result()


async def test_what_is_put_is_seen_and_becomes_ready_and_its_changes_requeue_the_server(dtma: DtmaHost) -> None:
    async with operator(dtma) as op:
        await op.reachable()
        report = await op.hosts.host(TOOLBOX).put_instance(INSTANCE, DESIRED)
        # Its news may have been faster than its answer.
        assert op.view().instances[INSTANCE].observed.seq >= report.observed.seq
        await until("ready", lambda: op.view().instances[INSTANCE].observed.phase, lambda p: p is InstancePhase.READY)
        assert (Kind.MCP_SERVER, Key("team-a", "time")) in op.queue.now


async def test_a_grant_is_listed_with_the_hash_of_its_content(dtma: DtmaHost) -> None:
    async with operator(dtma) as op:
        await op.reachable()
        await op.hosts.host(TOOLBOX).put_instance(INSTANCE, DESIRED)
        report = await op.hosts.host(TOOLBOX).put_grant("uid-c", GRANT)
        assert report.content_hash == canonical_hash(GRANT)
        assert report.programmed
    async with operator(dtma) as op:
        await op.reachable()
        assert op.view().grants["uid-c"].content_hash == canonical_hash(GRANT)
        await op.hosts.host(TOOLBOX).delete_grant("uid-c", namespace="team-a", name="bot-time")
        assert op.view().grants == {}
        with pytest.raises(HostProblem) as caught:
            await op.hosts.host(TOOLBOX).put_grant("uid-c", GRANT)
        assert caught.value.code is ProblemCode.DELETED


async def test_deleting_an_instance_takes_its_grants_along(dtma: DtmaHost) -> None:
    async with operator(dtma) as op:
        await op.reachable()
        host = op.hosts.host(TOOLBOX)
        await host.put_instance(INSTANCE, DESIRED)
        await host.put_grant("uid-c", GRANT)
        await host.delete_instance(INSTANCE, uid="uid-1", namespace="team-a", name="time")
        assert op.view().instances == {} and op.view().grants == {}
        assert dtma.engine.removed == [INSTANCE]
        await host.delete_instance(INSTANCE, uid="uid-1", namespace="team-a", name="time")


async def test_a_host_that_restarts_is_found_again_with_what_it_holds(dtma: DtmaHost) -> None:
    async with operator(dtma) as op:
        await op.reachable()
        await op.hosts.host(TOOLBOX).put_instance(INSTANCE, DESIRED)
        before = op.view().boot_id
        await dtma.restart()
        await until("listed again", lambda: op.view(), lambda view: view.usable and view.boot_id > before)
        assert INSTANCE in op.view().instances


async def test_a_host_that_stops_is_noticed_and_calls_fail_at_once(dtma: DtmaHost) -> None:
    async with operator(dtma) as op:
        await op.reachable()
        await dtma.stop()
        await until("unreachable", lambda: op.view().state, lambda state: state is HostState.UNREACHABLE)
        failure = op.view().failure
        assert failure is not None and failure.reason == "HostUnreachable"
        assert op.view().lost_in is not None


async def test_a_wrong_token_is_named_and_the_right_one_taken_up(dtma: DtmaHost) -> None:
    async with operator(dtma) as op:
        await op.ensure("wrong")
        await until("refused", lambda: op.view().failure)
        failure = op.view().failure
        assert failure is not None and failure.reason == "HostUnauthorized"
        await op.reachable()


async def test_a_second_leader_takes_over_and_the_first_raises_above_it_while_it_holds_the_lease(
    dtma: DtmaHost,
) -> None:
    first = Leading(epoch=3)
    async with operator(dtma, first) as one, operator(dtma, Leading(epoch=7)) as two:
        await one.reachable()
        await two.reachable()
        await one.hosts.host(TOOLBOX).put_instance(INSTANCE, DESIRED)
        assert first.epoch == 8

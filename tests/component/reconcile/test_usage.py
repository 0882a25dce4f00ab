"""From a host's call records to what a connection's status says of its use."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from support.reconcilers.memory_calls import MemoryCalls, call
from support.reconcilers.world import NS, Crash, World, world
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.hosts.api import HostUnreachable
from toolbox_operator.kube.api import CONNECTIONS, KubeError

pytestmark = pytest.mark.component

TOOLBOX, KEY = Key(NS, "tbx-1"), Key(NS, "bot-time")


async def connected(w: World) -> str:
    """A connection that works, in a process that has been there for a while; its UID."""
    w.toolbox()
    w.server()
    w.connection()
    await w.settle()
    assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")
    await w.advance(120)
    return str(w.body(Kind.CONNECTION, KEY)["metadata"]["uid"])


def called(w: World, uid: str, times: int = 1) -> None:
    """So many calls end now, and wait on the host."""
    w.machine().spool += [call(uid, w.clock.now()) for _ in range(times)]


def shown(w: World) -> tuple[int | None, datetime | None]:
    status = w.status(Kind.CONNECTION, KEY)
    last: Any = status.get("lastUsedTime")
    return status.get("calls"), datetime.fromisoformat(last) if last else None


def version(w: World) -> str:
    return str(w.body(Kind.CONNECTION, KEY)["metadata"]["resourceVersion"])


async def test_a_connection_that_nobody_uses_is_never_written_for_its_use() -> None:
    async with world(database=MemoryCalls()) as w:
        await connected(w)
        before = len(w.kube.writes)
        for _ in range(5):
            await w.pull(TOOLBOX)
            await w.advance(60)
        assert len(w.kube.writes) == before
        assert shown(w) == (None, None)


async def test_the_first_call_is_shown_at_once_and_more_of_them_once_a_minute() -> None:
    async with world(database=MemoryCalls()) as w:
        uid = await connected(w)
        first = w.clock.now()
        called(w, uid, 3)
        await w.pull(TOOLBOX)
        assert shown(w) == (3, first)
        written = version(w)
        for _ in range(5):
            await w.advance(11)
            called(w, uid)
            await w.pull(TOOLBOX)
        last = w.clock.now()
        assert version(w) == written
        await w.advance(5)
        assert shown(w) == (8, last)
        written = version(w)
        await w.advance(600)
        assert version(w) == written


async def test_a_pass_for_another_reason_neither_shows_use_early_nor_forgets_to_show_it() -> None:
    async with world(database=MemoryCalls()) as w:
        uid = await connected(w)
        called(w, uid)
        await w.pull(TOOLBOX)
        await w.advance(20)
        called(w, uid)
        await w.pull(TOOLBOX)
        w.patch(Kind.CONNECTION, KEY, active=False)
        await w.settle()
        assert w.status(Kind.CONNECTION, KEY)["phase"] == "Disconnected"
        assert shown(w)[0] == 1
        await w.advance(40)
        assert shown(w)[0] == 2


async def test_a_status_that_cannot_be_written_is_tried_again_at_the_pace_of_the_back_off() -> None:
    async with world(database=MemoryCalls()) as w:
        uid = await connected(w)

        def refuse(name: str) -> None:
            if name.startswith("status"):
                raise KubeError(500, "etcd is busy")

        w.kube.before_write = refuse
        called(w, uid)
        before = w.passes
        await w.pull(TOOLBOX)
        await w.settle()
        assert w.passes - before <= 3
        w.kube.before_write = lambda _: None
        await w.advance(2)
        assert shown(w)[0] == 1


async def test_a_batch_is_acknowledged_only_once_it_is_kept() -> None:
    database = MemoryCalls()
    async with world(database=database) as w:
        uid = await connected(w)
        machine = w.machine()
        called(w, uid, 2)
        database.away = True
        await w.pull(TOOLBOX)
        assert (len(machine.spool), shown(w)) == (2, (None, None))
        database.healthy = False
        asked = len(machine.calls)
        await w.pull(TOOLBOX)
        assert len(machine.calls) == asked, "not even asked for while nothing can be kept"
        database.away, database.healthy = False, True
        await w.pull(TOOLBOX)
        assert (len(machine.spool), shown(w)[0]) == (2, 2)
        await w.pull(TOOLBOX)
        assert (machine.spool, shown(w)[0]) == ([], 2)


async def test_full_batches_are_followed_soon_but_not_at_once_others_after_a_while() -> None:
    async with world(database=MemoryCalls()) as w:
        uid = await connected(w)
        timings = w.context.timings
        w.machine().page = 100
        called(w, uid, 150)
        w.machine().before_call = lambda _: w.clock.advance(0.5)
        assert await w.pull(TOOLBOX) == 1.0
        assert await w.pull(TOOLBOX) == timings.calls_active
        assert await w.pull(TOOLBOX) == timings.calls_idle
        assert shown(w)[0] == 100
        await w.advance(60)
        assert shown(w)[0] == 150


async def test_use_that_was_committed_and_not_shown_when_the_operator_ended_is_shown_by_the_next() -> None:
    database = MemoryCalls()
    async with world(database=database) as w:
        uid = await connected(w)
        called(w, uid, 2)
        await w.pull(TOOLBOX)
        await w.pull(TOOLBOX)
        assert shown(w)[0] == 2
        called(w, uid, 3)

        def crash() -> None:
            raise Crash("between COMMIT and everything else")

        database.committed = crash
        with pytest.raises(Crash):
            await w.pull(TOOLBOX)
        database.committed = lambda: None
        await w.restart()
        await w.settle()
        written = version(w)
        await w.pull(TOOLBOX)
        assert (len(database.rows), version(w)) == (5, written)
        await w.advance(60)
        assert shown(w)[0] == 5
        await w.pull(TOOLBOX)
        await w.advance(120)
        assert (shown(w)[0], w.machine().spool) == (5, [])


async def test_use_that_was_acknowledged_and_not_shown_when_the_operator_ended_is_shown_by_the_next() -> None:
    database = MemoryCalls()
    async with world(database=database) as w:
        uid = await connected(w)
        called(w, uid)
        await w.pull(TOOLBOX)
        called(w, uid, 4)
        await w.pull(TOOLBOX)
        await w.pull(TOOLBOX)
        assert (shown(w)[0], w.machine().spool) == (1, [])
        await w.restart()
        await w.settle()
        await w.pull(TOOLBOX)
        await w.advance(60)
        assert shown(w)[0] == 5


async def test_a_count_goes_on_from_status_when_the_database_lost_its_own() -> None:
    database = MemoryCalls()
    async with world(database=database) as w:
        uid = await connected(w)
        called(w, uid, 7)
        await w.pull(TOOLBOX)
        database.rows.clear()
        database.sums.clear()
        await w.pull(TOOLBOX)
        called(w, uid, 2)
        await w.pull(TOOLBOX)
        await w.advance(60)
        assert shown(w)[0] == 9


async def test_without_a_record_calls_are_counted_and_the_host_may_forget_them() -> None:
    async with world() as w:
        uid = await connected(w)
        called(w, uid, 2)
        await w.pull(TOOLBOX)
        await w.pull(TOOLBOX)
        assert (shown(w)[0], w.machine().spool) == (2, [])
        await w.restart()
        await w.settle()
        called(w, uid)
        await w.pull(TOOLBOX)
        await w.advance(60)
        assert shown(w)[0] == 3


async def test_calls_from_a_clock_that_is_years_off_are_refused_counted_and_hold_up_no_others() -> None:
    async with world() as w:
        uid = await connected(w)
        w.machine().spool += [call(uid, w.clock.now() + timedelta(days=days)) for days in (-4000, -91, 2, 9000)]
        called(w, uid)
        await w.pull(TOOLBOX)
        assert shown(w) == (1, w.clock.now())
        await w.pull(TOOLBOX)
        assert w.machine().spool == []
        text = w.metrics.render().decode()
        assert 'magic_toolbox_calls_refused_total{reason="clock"} 4.0' in text
        assert "magic_toolbox_calls_total 1.0" in text


async def test_an_older_host_has_no_accounting_and_everything_else() -> None:
    async with world(database=MemoryCalls()) as w:
        w.machine().old = True
        await connected(w)
        asked = w.machine().calls.count("calls")
        for _ in range(3):
            await w.pull(TOOLBOX)
        assert w.machine().calls.count("calls") == asked + 1, "asked once, then left alone"
        assert not w.hosts.pulls()[TOOLBOX].view.supported
        assert w.ready(Kind.TOOLBOX, TOOLBOX) == ("True", "Ready")
        assert w.ready(Kind.CONNECTION, KEY) == ("True", "Connected")
        w.machine().old = False
        await w.advance(601)
        await w.pull(TOOLBOX)
        assert w.hosts.pulls()[TOOLBOX].view.supported


async def test_a_host_that_was_renewed_is_asked_again_in_its_next_contact() -> None:
    async with world(database=MemoryCalls()) as w:
        w.machine().old = True
        await connected(w)
        await w.pull(TOOLBOX)
        w.machine().old = False
        w.machine().end_watches()
        contact = w.context.hosts.all()[TOOLBOX].contact
        await w.until(lambda: w.context.hosts.all()[TOOLBOX].contact != contact, "in contact again")
        await w.pull(TOOLBOX)
        assert w.hosts.pulls()[TOOLBOX].view.supported


async def test_calls_that_are_not_answered_cost_no_contact_and_are_asked_for_ever_more_slowly() -> None:
    async with world(database=MemoryCalls()) as w:
        uid = await connected(w)
        called(w, uid)
        idle = w.context.timings.calls_idle

        def unanswered(name: str) -> None:
            if name == "calls":
                raise HostUnreachable("answered 500")

        w.machine().before_call = unanswered
        pauses = [await w.pull(TOOLBOX) / idle for _ in range(8)]
        assert pauses == [1, 2, 3, 4, 5, 6, 6, 6]
        assert w.ready(Kind.TOOLBOX, TOOLBOX) == ("True", "Ready")
        w.machine().before_call = lambda _: None
        await w.pull(TOOLBOX)
        assert shown(w)[0] == 1


async def test_a_process_that_no_longer_leads_asks_for_no_calls() -> None:
    async with world(database=MemoryCalls()) as w:
        uid = await connected(w)
        called(w, uid)
        w.leadership.held = False
        asked = len(w.machine().calls)
        await w.hosts.pulls()[TOOLBOX].step()
        assert len(w.machine().calls) == asked


async def test_nothing_is_asked_of_a_host_that_cannot_be_reached() -> None:
    async with world(database=MemoryCalls()) as w:
        await connected(w)
        w.machine().cut()
        await w.until(lambda: w.status(Kind.TOOLBOX, TOOLBOX)["phase"] == "Lost", "outage")
        assert await w.pull(TOOLBOX) == w.context.timings.calls_idle
        assert "calls" not in w.machine().calls


async def test_records_of_a_connection_that_is_gone_are_kept_and_nothing_is_written() -> None:
    database = MemoryCalls()
    async with world(database=database) as w:
        uid = await connected(w)
        w.delete(Kind.CONNECTION, KEY)
        await w.settle()
        assert w.kube.peek(CONNECTIONS, KEY) is None
        before = len(w.kube.writes)
        called(w, uid)
        await w.pull(TOOLBOX)
        assert (len(database.rows), len(w.kube.writes)) == (1, before)


async def test_a_deleted_toolbox_is_pulled_from_no_more_and_leaves_no_metric() -> None:
    async with world(database=MemoryCalls()) as w:
        w.toolbox()
        await w.settle()
        assert TOOLBOX in w.hosts.pulls()
        w.delete(Kind.TOOLBOX, TOOLBOX)
        await w.settle()
        assert w.hosts.pulls() == {}

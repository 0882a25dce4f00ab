"""What waits for a client is bounded, and in order."""

from __future__ import annotations

import asyncio

import pytest

from toolbox_dtma.gateway.http_sse.outbox import (
    ALWAYS_HELD_BYTES,
    HIGH_WATER_BYTES,
    HIGH_WATER_EVENTS,
    MAX_HELD_BYTES,
    Budget,
    Holding,
    Outbox,
    Overfull,
)

SOON = 0.01


async def test_events_leave_in_order_and_count_until_the_next_is_taken() -> None:
    holding = Holding(Budget())
    outbox = Outbox(holding)
    for event in (b"one", b"three"):
        await outbox.put(event)
    assert holding.held == 8 and not outbox.is_empty
    assert await outbox.take(SOON) == b"one"
    assert holding.held == 8
    assert await outbox.take(SOON) == b"three"
    assert holding.held == 5 and not outbox.is_empty
    assert await outbox.take(SOON) == b""
    assert holding.held == 0 and outbox.is_empty


async def test_whoever_takes_waits_for_the_next_event() -> None:
    outbox = Outbox(Holding(Budget()))
    taking = asyncio.create_task(outbox.take(10))
    await asyncio.sleep(0)
    assert not taking.done()
    await outbox.put(b"event")
    assert await taking == b"event"


@pytest.mark.parametrize("event", [b"x" * (HIGH_WATER_BYTES // 2), b"x"], ids=["many bytes", "many events"])
async def test_above_the_mark_whoever_puts_waits_until_something_was_taken(event: bytes) -> None:
    outbox = Outbox(Holding(Budget()))
    fits = min(HIGH_WATER_EVENTS, HIGH_WATER_BYTES // len(event))
    for _ in range(fits):
        await outbox.put(event)
    putting = asyncio.create_task(outbox.put(b"last"))
    await asyncio.sleep(0)
    assert not putting.done()
    await outbox.take(SOON)
    await asyncio.wait_for(putting, 1)
    left = [await outbox.take(SOON) for _ in range(fits)]
    assert left[-1] == b"last"


async def test_once_closed_it_gives_out_what_it_has_and_then_the_end() -> None:
    outbox = Outbox(Holding(Budget()))
    await outbox.put(b"last")
    outbox.close()
    await outbox.put(b"too late")
    assert [await outbox.take(SOON) for _ in range(3)] == [b"last", None, None]


async def test_closing_lets_whoever_waits_go() -> None:
    outbox = Outbox(Holding(Budget()))
    await outbox.put(b"x" * HIGH_WATER_BYTES)
    putting, idle = asyncio.create_task(outbox.put(b"y")), Outbox(Holding(Budget()))
    taking = asyncio.create_task(idle.take(10))
    await asyncio.sleep(0)
    outbox.close()
    idle.close()
    await asyncio.wait_for(putting, 1)
    assert await asyncio.wait_for(taking, 1) is None


def test_a_stream_holds_no_more_than_its_bound_and_nothing_of_what_is_refused() -> None:
    budget = Budget()
    holding = Holding(budget)
    holding.take(MAX_HELD_BYTES)
    with pytest.raises(Overfull):
        holding.take(1)
    assert holding.held == budget.held == MAX_HELD_BYTES
    holding.close()
    assert holding.held == budget.held == 0


def test_where_all_hold_too_much_the_large_ones_are_refused_and_the_small_ones_go_on() -> None:
    budget = Budget(most=2 * ALWAYS_HELD_BYTES)
    large, small = Holding(budget), Holding(budget)
    large.take(2 * ALWAYS_HELD_BYTES)
    with pytest.raises(Overfull):
        large.take(1)
    small.take(ALWAYS_HELD_BYTES)
    with pytest.raises(Overfull):
        small.take(1)
    large.close()
    small.take(1)

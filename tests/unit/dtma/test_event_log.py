"""The ring of events."""

from __future__ import annotations

import asyncio

import pytest

from toolbox_dtma.management.events import EventLog
from toolbox_dtma.management.problems import Refused
from toolbox_dtma.wire import DeletedInstance


def log(*, events: int = 100, size: int = 1 << 20) -> EventLog:
    return EventLog(3, max_events=events, max_bytes=size)


def fill(ring: EventLog, number: int, owner: str = "a") -> None:
    for index in range(number):
        ring.publish(owner, "deleted", DeletedInstance(id=f"i-{index}", uid="u"))


def refusal(ring: EventLog, cursor: str) -> str:
    with pytest.raises(Refused) as caught:
        ring.parse_cursor(cursor)
    return caught.value.code.value


def test_numbers_rise_by_one_over_all_owners() -> None:
    ring = log()
    assert ring.cursor == "3:0"
    assert ring.publish("a", "deleted", DeletedInstance(id="i", uid="u")) == 1
    assert ring.next_seq() == ring.publish("b", "deleted", DeletedInstance(id="i", uid="u")) == 2
    assert ring.cursor == "3:2"


@pytest.mark.parametrize(
    ("cursor", "code"),
    [("3:6", "Gone"), ("3:1", "Gone"), ("2:4", "Gone"), ("3:", "Invalid"), ("٣:4", "Invalid"), ("", "Invalid")],
)
def test_a_cursor_that_cannot_be_followed_is_refused(cursor: str, code: str) -> None:
    ring = log(events=3)
    fill(ring, 5)
    assert refusal(ring, cursor) == code


def test_every_cursor_of_the_ring_and_its_edge_can_be_followed() -> None:
    ring = log(events=3)
    fill(ring, 5)
    assert [ring.parse_cursor(f"3:{seq}") for seq in (2, 3, 4, 5)] == [2, 3, 4, 5]


def test_the_ring_is_bounded_by_size_too() -> None:
    ring = log(size=200)
    fill(ring, 50)
    assert refusal(ring, "3:1") == "Gone"
    assert ring.parse_cursor("3:50") == 50


async def test_a_watcher_gets_its_owners_events_in_order() -> None:
    ring = log()
    fill(ring, 2)
    fill(ring, 1, owner="b")
    watch = ring.watch("a", 1, heartbeat=10)
    first = await anext(watch)
    assert first is not None
    assert first.seq == 2
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    fill(ring, 1, owner="b")
    fill(ring, 1)
    async with asyncio.timeout(5):
        second = await waiting
    assert second is not None
    assert second.seq == 5
    await watch.aclose()


async def test_a_watcher_that_is_too_slow_is_ended_instead_of_skipped_ahead() -> None:
    ring = log(events=2)
    fill(ring, 1)
    watch = ring.watch("a", 0, heartbeat=10)
    assert await anext(watch) is not None
    fill(ring, 10)
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_closing_ends_every_watch() -> None:
    ring = log()
    waiting = asyncio.ensure_future(anext(ring.watch("a", 0, heartbeat=10), "ended"))
    await asyncio.sleep(0)
    ring.close()
    async with asyncio.timeout(5):
        assert await waiting == "ended"

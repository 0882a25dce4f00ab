"""Messages that wait for a client."""

from __future__ import annotations

import asyncio

from toolbox_dtma.broker.outlets import HIGH_WATER, Outlet, Said

LARGE = Said(b"x" * (HIGH_WATER + 1))


async def test_messages_come_out_in_order_and_the_last_one_ends_it() -> None:
    outlet = Outlet()
    reading = asyncio.ensure_future(outlet.take())
    first, last = Said(b"1"), Said(b"2", last=True)
    outlet.put(first)
    assert await reading == first
    outlet.put(last)
    outlet.put(Said(b"too late"))
    assert [await outlet.take(), await outlet.take()] == [last, None]


async def test_there_is_room_until_too_much_waits_and_again_once_it_was_written() -> None:
    outlet = Outlet()
    outlet.put(Said(b"x" * HIGH_WATER))
    await asyncio.wait_for(outlet.room(), 1)
    outlet.put(Said(b"y"))
    waiting = asyncio.ensure_future(outlet.room())
    taken = await outlet.take()
    assert taken is not None
    await asyncio.sleep(0)
    # Taken is not written: its bytes are still held.
    assert not waiting.done()
    outlet.written(taken)
    await asyncio.wait_for(waiting, 1)


async def test_an_outlet_that_nobody_reads_any_more_holds_nothing_and_nobody_up() -> None:
    outlet = Outlet()
    outlet.put(LARGE)
    waiting = asyncio.ensure_future(outlet.room())
    outlet.desert()
    await asyncio.wait_for(waiting, 1)
    outlet.put(LARGE)
    assert outlet.held == 0 and await outlet.take() is None
    await asyncio.wait_for(outlet.room(), 1)


async def test_what_was_put_in_before_the_end_is_still_read() -> None:
    outlet = Outlet()
    outlet.put(Said(b"1"))
    outlet.close()
    assert [await outlet.take(), await outlet.take()] == [Said(b"1"), None]

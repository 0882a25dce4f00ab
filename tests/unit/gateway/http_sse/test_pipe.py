"""Two protocols of one process, joined without a socket."""

from __future__ import annotations

import asyncio
from typing import cast

from toolbox_dtma.gateway.http_sse.pipe import join


class Side(asyncio.Protocol):
    """Remembers what happens to it."""

    def __init__(self) -> None:
        self.happened: list[str | bytes] = []
        self.transport = cast("asyncio.Transport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.happened.append(data)

    def eof_received(self) -> bool:
        self.happened.append("eof")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.happened.append("lost" if exc is None else repr(exc))

    def pause_writing(self) -> None:
        self.happened.append("pause")

    def resume_writing(self) -> None:
        self.happened.append("resume")


def joined() -> tuple[Side, Side]:
    one, other = Side(), Side()
    join(one, other)
    return one, other


async def turns() -> None:
    """Let everything happen that has been scheduled, and what that schedules."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_bytes_arrive_in_order_and_never_within_the_call_that_writes_them() -> None:
    one, other = joined()
    one.transport.write(b"a")
    one.transport.writelines([b"b", b"c"])
    assert other.happened == [] and one.transport.get_write_buffer_size() == 3
    await turns()
    assert b"".join(cast("list[bytes]", other.happened)) == b"abc" and one.transport.get_write_buffer_size() == 0
    other.transport.write(b"d")
    await turns()
    assert one.happened == [b"d"]


async def test_a_reader_that_pauses_holds_up_the_writer_and_nothing_is_lost() -> None:
    one, other = joined()
    one.transport.set_write_buffer_limits(high=4)
    other.transport.pause_reading()
    assert not other.transport.is_reading()
    one.transport.write(b"abc")
    await turns()
    assert one.happened == []
    one.transport.write(b"de")
    await turns()
    assert one.happened == ["pause"] and other.happened == []
    other.transport.resume_reading()
    await turns()
    assert one.happened == ["pause", "resume"] and other.happened == [b"abc", b"de"]


async def test_closing_delivers_what_was_written_and_ends_both_sides_once() -> None:
    one, other = joined()
    one.transport.write(b"last")
    one.transport.close()
    one.transport.write(b"too late")
    assert one.transport.is_closing() and not other.transport.is_closing()
    await turns()
    assert other.happened == [b"last", "eof", "lost"] and one.happened == ["lost"]
    other.transport.close()
    one.transport.abort()
    await turns()
    assert other.happened == [b"last", "eof", "lost"] and one.happened == ["lost"]


async def test_closing_waits_for_a_reader_that_pauses() -> None:
    one, other = joined()
    other.transport.pause_reading()
    one.transport.write(b"last")
    one.transport.close()
    await turns()
    assert other.happened == one.happened == []
    other.transport.resume_reading()
    await turns()
    assert other.happened == [b"last", "eof", "lost"] and one.happened == ["lost"]


async def test_an_abort_drops_what_was_written() -> None:
    one, other = joined()
    one.transport.write(b"dropped")
    one.transport.abort()
    await turns()
    assert other.happened == ["eof", "lost"] and one.happened == ["lost"]


async def test_both_sides_may_end_at_once() -> None:
    one, other = joined()
    one.transport.write(b"a")
    other.transport.write(b"b")
    one.transport.close()
    other.transport.close()
    await turns()
    assert one.happened[-1] == other.happened[-1] == "lost"
    assert one.happened.count("lost") == other.happened.count("lost") == 1


async def test_what_is_asked_of_sockets_is_not_there() -> None:
    one, _ = joined()
    assert one.transport.get_extra_info("peername") is None and one.transport.get_extra_info("socket") is None

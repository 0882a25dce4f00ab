"""The control link, and the supervision of the broker's process."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import tempfile
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.dtma.sessions import Brokers, running, until
from toolbox_dtma.link.broker import (
    MAX_PACKET_BYTES,
    BrokerPing,
    BrokerPong,
    CloseSession,
    Ended,
    OpenSession,
    SessionEnded,
    SessionOpened,
)
from toolbox_dtma.sessions.link import MAX_WAITING, ControlLink, LinkBroken
from toolbox_dtma.sessions.process import Broker
from toolbox_dtma.settings import Timings

TIMINGS = Timings(broker_end=0.02, broker_retry_first=0.05, broker_retry_max=0.4)
Pair = tuple[ControlLink, socket.socket]


@pytest.fixture
async def pair() -> AsyncGenerator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = ControlLink(ours)
    yield link, theirs
    link.close()
    theirs.close()


def ended(number: int) -> SessionEnded:
    return SessionEnded(session=f"s-{number}", why=Ended.EXITED, message="m" * 500)


async def test_a_stream_is_passed_on_and_our_copy_closed(pair: Pair) -> None:
    link, theirs = pair
    stream, process = socket.socketpair()
    with process:
        link.send(SessionOpened(request=1, session="s", idle_seconds=1.0), stream)
        assert stream.fileno() < 0
        _, (descriptor,), _, _ = socket.recv_fds(theirs, MAX_PACKET_BYTES, 1)
        with socket.socket(fileno=descriptor) as passed:
            process.send(b"x")
            assert passed.recv(1) == b"x"
        assert process.recv(1) == b"", "nobody holds it any more"


async def test_what_a_broker_does_not_take_at_once_arrives_later_in_order(pair: Pair) -> None:
    link, theirs = pair
    for number in range(1000):
        link.send(ended(number))
    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    async with asyncio.timeout(20):
        heard = [await loop.sock_recv(theirs, MAX_PACKET_BYTES) for _ in range(1000)]
    assert [SessionEnded.model_validate_json(packet).session for packet in heard] == [f"s-{n}" for n in range(1000)]


async def test_a_broker_that_does_not_listen_is_found_out_and_holds_no_stream_open(pair: Pair) -> None:
    link, _ = pair
    stream, process = socket.socketpair()
    with process:
        for number in range(MAX_WAITING + 2000):
            link.send(ended(number))
        link.send(SessionOpened(request=1, session="s", idle_seconds=1.0), stream)
        assert process.recv(1) == b""
    with pytest.raises(LinkBroken, match="does not read"):
        await link.receive()


@pytest.mark.parametrize("packet", [b"x", b'{"kind": "opened"}', b'{"kind": "open", "v": 2}', b"y" * 70_000])
async def test_what_is_no_message_breaks_the_link_and_is_not_repeated(pair: Pair, packet: bytes) -> None:
    link, theirs = pair
    theirs.send(packet)
    with pytest.raises(LinkBroken) as broken:
        await link.receive()
    assert packet[:20].decode() not in f"{broken.value!r}{broken.value.__cause__!r}" or len(packet) == 1


async def test_to_one_that_has_gone_nothing_is_said(pair: Pair) -> None:
    link, theirs = pair
    theirs.close()
    stream, process = socket.socketpair()
    with process:
        link.send(SessionOpened(request=1, session="s", idle_seconds=1.0), stream)
        assert process.recv(1) == b""
    assert await link.receive() is None


@dataclass
class Heard:
    """A `Listener` that writes down."""

    links: list[ControlLink] = field(default_factory=list[ControlLink])
    messages: list[OpenSession | CloseSession] = field(default_factory=list[OpenSession | CloseSession])
    ends: int = 0

    def broker_up(self, link: ControlLink) -> None:
        self.links.append(link)

    def broker_said(self, message: OpenSession | CloseSession) -> None:
        self.messages.append(message)

    def broker_down(self) -> None:
        self.ends += 1


@pytest.fixture
def folder() -> Generator[Path]:
    """Short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="dtma-") as name:
        yield Path(name)


def supervised(folder: Path, brokers: Brokers, heard: Heard, timings: Timings = TIMINGS) -> Broker:
    return Broker(folder / "b.sock", os.getgid(), brokers, heard, timings, asyncio.get_running_loop().time)


async def test_nothing_is_started_before_it_is_needed(folder: Path) -> None:
    brokers, heard = Brokers(), Heard()
    broker = supervised(folder, brokers, heard)
    async with running(asyncio.create_task(broker.run())):
        await asyncio.sleep(0.02)
        assert not brokers.started and not (folder / "b.sock").exists()
        broker.need()
        await until(lambda: len(heard.links) == 1, "a broker")
        brokers.started[0].ask("i-1", "c-1")
        await until(lambda: len(heard.messages) == 1, "its message")
    assert brokers.started[0].closed and heard.ends == 1 and not (folder / "b.sock").exists()


async def test_a_broker_that_keeps_ending_is_started_ever_less_often(folder: Path) -> None:
    brokers, heard = Brokers(), Heard()
    broker = supervised(folder, brokers, heard)
    broker.need()
    loop, starts = asyncio.get_running_loop(), list[float]()
    async with running(asyncio.create_task(broker.run())):
        for number in range(1, 6):
            last = await brokers.nth(number)
            starts.append(loop.time())
            last.kill()
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    # Of each pause at least half, for the jitter.
    assert all(pause >= least for pause, least in zip(pauses, (0.025, 0.05, 0.1, 0.2), strict=True)), pauses
    assert heard.ends == len(heard.links)


async def test_a_broker_that_is_not_ready_in_time_is_replaced_and_was_never_there(folder: Path) -> None:
    brokers, heard = Brokers(ready=False), Heard()
    broker = supervised(folder, brokers, heard, TIMINGS.model_copy(update={"broker_start": 0.2}))
    broker.need()
    async with running(asyncio.create_task(broker.run())):
        second = await brokers.nth(2)
        assert brokers.started[0].closed and not heard.links and heard.ends == 0
        second.ask("i-1", "c-1")
        # Nor is one that begins with something else.
        await brokers.nth(3)
    assert not heard.links and not heard.messages


async def test_a_broker_that_hangs_is_killed_and_one_that_answers_is_not(folder: Path) -> None:
    brokers, heard = Brokers(), Heard()
    timings = TIMINGS.model_copy(update={"broker_ask": 0.1, "broker_unanswered": 3})
    broker = supervised(folder, brokers, heard, timings)
    broker.need()
    async with running(asyncio.create_task(broker.run())):
        first = await brokers.nth(1)
        began = asyncio.get_running_loop().time()
        # It answers for longer than it may be silent.
        while asyncio.get_running_loop().time() - began < 1.0:
            assert isinstance(await first.told(), BrokerPing)
            first.say(BrokerPong())
        assert not first.closed and len(brokers.started) == 1
        first.ask("i-1", "c-1")
        await until(lambda: len(heard.messages) == 1, "pings are nobody else's affair")
        second = await brokers.nth(2)
        assert first.closed and heard.ends == 1
        # Whatever it says is a sign of life.
        for number in range(2, 14):
            second.ask("i-1", "c-1")
            await until(lambda number=number: len(heard.messages) == number, "its message")
            await asyncio.sleep(0.05)
        assert not second.closed
    assert heard.ends == 2


async def test_a_broker_that_cannot_be_started_is_tried_again(folder: Path) -> None:
    brokers, heard = Brokers(), Heard()
    brokers.failure = PermissionError(1, "Operation not permitted")
    broker = supervised(folder, brokers, heard)
    broker.need()
    async with running(asyncio.create_task(broker.run())):
        await until(lambda: brokers.failures >= 2, "a second try that fails too")
        brokers.failure = None
        await until(lambda: len(heard.links) == 1, "a broker")

"""Both neighbours of the session manager, as a test wants them: an engine that makes processes, and a broker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from toolbox_dtma.engine.api import ExitListener, NotDeployed, SessionExit, SessionStream
from toolbox_dtma.link.broker import (
    MAX_PACKET_BYTES,
    TO_BROKER,
    AnyFromBroker,
    AnyToBroker,
    BrokerPing,
    BrokerPong,
    BrokerReady,
    CloseSession,
    Closing,
    OpenSession,
    SessionEnded,
    SessionOpened,
    SessionRefused,
    Upstream,
)


class FakeSessions:
    """What sessions need of an engine. A process is a socket, whose other end the test holds."""

    def __init__(self) -> None:
        self.deployed: dict[str, str] = {}
        """Incarnation of each instance that can have sessions."""
        self.processes: dict[str, socket.socket] = {}
        """The processes' ends, by session; those of ended sessions are not here."""
        self.made: list[str] = []
        """Every session that was asked for, in order."""
        self.ended: list[tuple[str, int]] = []
        """Every session that had a process and was ended, with the grace it got."""
        self.failure: Exception | None = None
        """Raised in place of making a process."""
        self.makes = asyncio.Event()
        self.makes.set()
        self._listener: ExitListener | None = None

    def follow_sessions(self, listener: ExitListener) -> None:
        """As the engine does."""
        self._listener = listener

    async def open_session(self, instance_id: str, session: str) -> SessionStream:
        """A process, once `makes` is set."""
        self.made.append(session)
        incarnation = self.deployed.get(instance_id)
        if incarnation is None:
            raise NotDeployed(instance_id)
        await self.makes.wait()
        if self.failure is not None:
            raise self.failure
        stream, process = socket.socketpair()
        self.processes[session] = process
        return SessionStream(incarnation, stream)

    def end_session(self, session: str, *, grace: int = 0) -> None:
        """The process is gone."""
        process = self.processes.pop(session, None)
        if process is not None:
            process.close()
            self.ended.append((session, grace))

    def exit(self, session: str, exit_: SessionExit) -> None:
        """The process of a session ends by itself."""
        assert self._listener is not None
        self.processes[session].shutdown(socket.SHUT_RDWR)
        self._listener(session, exit_)

    def close(self) -> None:
        """Close what is still open."""
        for session in tuple(self.processes):
            self.end_session(session)


@dataclass(eq=False)
class ScriptedBroker:
    """The broker's end of the control link, and the `Child` that DTMA takes for its process."""

    control: socket.socket
    pid: int = 4711
    streams: dict[str, socket.socket] = field(default_factory=dict[str, socket.socket])
    """By session, as they were passed."""
    upstreams: dict[str, Upstream] = field(default_factory=dict[str, Upstream])
    """By session that has no stream: where its server is."""
    ended: list[SessionEnded] = field(default_factory=list[SessionEnded])
    closed: bool = False
    _requests: int = 0
    _gone: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, message: AnyFromBroker) -> None:
        """One packet."""
        self.control.send(message.model_dump_json().encode())

    def say_ready(self) -> None:
        """That its socket answers."""
        self.say(BrokerReady(pid=self.pid))

    def ask(self, instance: str, connection: str = "", ticket: str = "", route: str = "") -> int:
        """Ask for a session; the request's number."""
        self._requests += 1
        number = self._requests
        self.say(OpenSession(request=number, instance=instance, connection=connection, ticket=ticket, route=route))
        return self._requests

    def let_go(self, session: str, why: Closing = Closing.CLIENT) -> None:
        """Close a session."""
        self._forget(session)
        self.say(CloseSession(session=session, why=why))

    def _forget(self, session: str) -> None:
        if self.upstreams.pop(session, None) is None:
            self.streams.pop(session).close()

    async def heard(self) -> SessionOpened | SessionRefused | SessionEnded:
        """The next message about a session. Pings before it are answered."""
        while isinstance(message := await self.told(), BrokerPing):
            self.say(BrokerPong())
        return message

    async def told(self) -> AnyToBroker:
        """The next message of any kind. A stream that comes with it is in `streams`."""
        async with asyncio.timeout(20):
            while True:
                try:
                    packet, descriptors, _, _ = socket.recv_fds(self.control, MAX_PACKET_BYTES, 4)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        assert packet, "DTMA hung up"
        message = TO_BROKER.validate_json(packet)
        if isinstance(message, SessionOpened) and message.upstream is not None:
            assert not descriptors
            self.upstreams[message.session] = message.upstream
        elif isinstance(message, SessionOpened):
            (descriptor,) = descriptors
            self.streams[message.session] = socket.socket(fileno=descriptor)
        else:
            assert not descriptors
        if isinstance(message, SessionEnded):
            self.ended.append(message)
            self._forget(message.session)
        return message

    async def opened(self, instance: str, connection: str = "", ticket: str = "", route: str = "") -> str:
        """Ask for a session and get it; its name."""
        request = self.ask(instance, connection, ticket, route)
        answer = await self.heard()
        assert isinstance(answer, SessionOpened) and answer.request == request, answer
        return answer.session

    async def refused(self, instance: str, connection: str = "", ticket: str = "", route: str = "") -> SessionRefused:
        """Ask for a session and do not get it."""
        request = self.ask(instance, connection, ticket, route)
        answer = await self.heard()
        assert isinstance(answer, SessionRefused) and answer.request == request, answer
        return answer

    def kill(self) -> None:
        """As SIGKILL would."""
        if not self.closed:
            self.closed = True
            self.control.close()
            for stream in self.streams.values():
                stream.close()
            self.streams.clear()
            self._gone.set()

    async def wait(self) -> int:
        """Until it was killed."""
        await self._gone.wait()
        return -9


class Brokers:
    """A `Spawn` of scripted brokers."""

    def __init__(self, *, ready: bool = True) -> None:
        self.started: list[ScriptedBroker] = []
        self.ready = ready
        """Whether a broker says so by itself."""
        self.failure: OSError | None = None
        self.failures = 0

    async def __call__(self, listener: socket.socket, control: socket.socket) -> ScriptedBroker:
        """One more."""
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if self.failure is not None:
            self.failures += 1
            raise self.failure
        end = control.dup()
        end.setblocking(False)
        broker = ScriptedBroker(end)
        self.started.append(broker)
        if self.ready:
            broker.say_ready()
        return broker

    async def nth(self, number: int) -> ScriptedBroker:
        """The broker of this number, from 1, once it was started."""
        await until(lambda: len(self.started) >= number, f"broker {number}")
        return self.started[number - 1]

    def close(self) -> None:
        """Close what is still open."""
        for broker in self.started:
            broker.kill()


async def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait for a condition."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(*work: asyncio.Task[None]) -> AsyncGenerator[None]:
    """Background tasks, which must not fail meanwhile; cancelled at the end."""
    try:
        yield
    finally:
        for task in work:
            task.cancel()
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

"""The session broker's process: started when the first bridged server comes, and again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any, Protocol

import structlog

from toolbox_dtma.link.broker import BACKLOG, BrokerPing, BrokerPong, BrokerReady, CloseSession, OpenSession
from toolbox_dtma.link.sockets import bound
from toolbox_dtma.sessions.link import ControlLink, LinkBroken
from toolbox_dtma.settings import Timings

log = structlog.get_logger("toolbox_dtma.sessions")

SOCKET_NAME = "broker.sock"
_KEPT_ENVIRONMENT = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""And what begins with PYTHON or LC_: all that it takes to start the same Python."""


class Child(Protocol):
    """A started broker."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def kill(self) -> None:
        """SIGKILL. Raises `ProcessLookupError` once it was waited for."""
        ...

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        ...


class Spawn(Protocol):
    """Starts a broker on a listening socket and its end of the control link. Raises `OSError`."""

    async def __call__(self, listener: socket.socket, control: socket.socket) -> Child:
        """Both sockets stay the caller's."""
        ...


class Listener(Protocol):
    """Who is told of the broker."""

    def broker_up(self, link: ControlLink) -> None:
        """It answers on its socket from now on."""
        ...

    def broker_said(self, message: OpenSession | CloseSession) -> None:
        """A message."""
        ...

    def broker_down(self) -> None:
        """It has ended, after `broker_up`."""
        ...


def spawner(uid: int, gid: int) -> Spawn:
    """Starts real brokers under this user, who has no other group. DTMA then needs CAP_SETUID and CAP_SETGID."""

    async def spawn(listener: socket.socket, control: socket.socket) -> Child:
        command = [sys.executable, "-m", "toolbox_dtma.broker", "--listen-fd", str(listener.fileno())]
        command += ["--control-fd", str(control.fileno())]
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT_ENVIRONMENT or name.startswith(("PYTHON", "LC_"))
        }
        same = (os.geteuid(), os.getegid()) == (uid, gid)
        # Groups too, which only root may set: the broker must not be in that of the Docker socket.
        identity: dict[str, Any] = {} if same else {"user": uid, "group": gid, "extra_groups": ()}
        # Never from a thread: the kernel would take the thread's end for the parent's and kill the child.
        return await asyncio.create_subprocess_exec(
            *command,
            pass_fds=(listener.fileno(), control.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            cwd="/",
            env=kept,
            start_new_session=True,
            **identity,
        )

    return spawn


class Broker:
    """One broker after another."""

    def __init__(
        self,
        path: Path,
        gid: int,
        spawn: Spawn,
        listener: Listener,
        timings: Timings,
        clock: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        """`path` of its socket, which the group `gid` may use; `clock` gives monotonic seconds."""
        self.path = path
        self._gid = gid
        self._spawn = spawn
        self._listener = listener
        self._timings = timings
        self._clock = clock
        # Jitter, not a secret.
        self._rng = rng or random.Random()
        self._needed = asyncio.Event()

    def need(self) -> None:
        """There is a server whose sessions it is to serve: a host without any has no broker."""
        self._needed.set()

    async def run(self) -> None:
        """Keep one running until cancelled, from the first need on."""
        await self._needed.wait()
        timings = self._timings
        with self._bound() as listening:
            delay = timings.broker_retry_first
            while True:
                began = self._clock()
                why = await self._one(listening)
                if self._clock() - began >= timings.broker_retry_max:
                    delay = timings.broker_retry_first
                pause = delay * (0.5 + self._rng.random() / 2)
                log.warning("the session broker has ended; it is started again", why=why, pause=round(pause, 3))
                await asyncio.sleep(pause)
                delay = min(delay * 2, timings.broker_retry_max)

    @contextlib.contextmanager
    def _bound(self) -> Generator[socket.socket]:
        """The listening socket, the same for every broker: who connects while one is replaced waits for the next."""
        with bound(self.path, self._gid) as listening:
            try:
                listening.listen(BACKLOG)
                yield listening
            finally:
                self.path.unlink(missing_ok=True)

    async def _one(self, listening: socket.socket) -> str:
        """One broker from start to end; why it ended."""
        try:
            async with self._started(listening) as (child, link):
                try:
                    return await self._converse(child, link)
                finally:
                    link.close()
        except OSError as error:
            return f"it could not be started: {error.strerror or error}"

    @contextlib.asynccontextmanager
    async def _started(self, listening: socket.socket) -> AsyncGenerator[tuple[Child, ControlLink]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            with theirs:
                child = await self._spawn(listening, theirs)
            on_failure.pop_all()
        link = ControlLink(ours)
        try:
            yield child, link
        finally:
            link.close()
            code = await self._ended(child)
            log.info("session broker ended", pid=child.pid, code=code)

    async def _ended(self, child: Child) -> int:
        """Its exit code. It ends by itself when the link does; one that does not is killed."""
        ended = asyncio.ensure_future(child.wait())
        # No `asyncio.timeout`: in a task that is being cancelled it ends with another cancellation in Python 3.11.2
        # (https://github.com/python/cpython/issues/102780).
        done, _ = await asyncio.wait({ended}, timeout=self._timings.broker_end)
        if not done:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        return await ended

    async def _converse(self, child: Child, link: ControlLink) -> str:
        up = False
        try:
            async with asyncio.timeout(self._timings.broker_start):
                first = await link.receive()
            if first is None:
                return "it ended before it was ready; its log says why"
            if not isinstance(first, BrokerReady):
                raise LinkBroken("its first message is not that it is ready")
            log.info("session broker ready", pid=child.pid)
            up = True
            self._listener.broker_up(link)
            return await self._listen(child, link)
        except TimeoutError:
            return "it was not ready in time"
        except LinkBroken as error:
            return str(error)
        finally:
            link.close()
            if up:
                self._listener.broker_down()

    async def _listen(self, child: Child, link: ControlLink) -> str:
        """Pass on what it says, and ask it again and again whether it is there. Raises `LinkBroken`."""
        loop, timings = asyncio.get_running_loop(), self._timings
        unanswered = 0

        def ask() -> None:
            nonlocal unanswered, timer
            # Counted, not timed: a DTMA that was itself held up would take every broker for one that hangs.
            if unanswered >= timings.broker_unanswered:
                link.give_up("it does not answer")
                # It would not see that the link has ended either.
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                return
            unanswered += 1
            link.send(BrokerPing())
            timer = loop.call_later(timings.broker_ask, ask)

        timer = loop.call_later(timings.broker_ask, ask)
        try:
            while (message := await link.receive()) is not None:
                unanswered = 0
                if isinstance(message, BrokerReady):
                    raise LinkBroken("it became ready twice")
                if not isinstance(message, BrokerPong):
                    self._listener.broker_said(message)
            return "it hung up"
        finally:
            timer.cancel()

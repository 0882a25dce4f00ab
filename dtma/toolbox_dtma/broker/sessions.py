"""All open sessions, and whose they are."""

from __future__ import annotations

import asyncio
import secrets
import socket

from structlog.typing import FilteringBoundLogger

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.control import Control
from toolbox_dtma.broker.messages import Heard
from toolbox_dtma.broker.outlets import Outlet, Said
from toolbox_dtma.broker.peer import Peer
from toolbox_dtma.broker.session import Owner, Patience, Session, SessionOver, Shared
from toolbox_dtma.broker.sse import Deadlines, SseServer
from toolbox_dtma.broker.stateless import Stateless, connected
from toolbox_dtma.broker.streams import ProcessStreams
from toolbox_dtma.broker.turns import Turns
from toolbox_dtma.gateway.upstream.client import UpstreamClient
from toolbox_dtma.link.broker import Closing, Ended, SessionEnded, SessionOpened

ID_BYTES = 16
STOPPING = "The session broker is stopping"


class NotBegun(Exception):
    """The handshake did not come to an end; the text is for the client."""


class Sessions:
    """Opens, finds and ends sessions."""

    def __init__(
        self,
        control: socket.socket,
        log: FilteringBoundLogger,
        *,
        patience: Patience | None = None,
        budget: Budget | None = None,
        deadlines: Deadlines | None = None,
    ):
        """`deadlines`: for servers of the SSE transport."""
        self._log = log
        self.control = Control(control, ended=self._ended)
        self.turns = Turns()
        self._client = UpstreamClient()
        self._deadlines = deadlines or Deadlines()
        self._patience, self._budget = patience or Patience(), budget or Budget()
        self._shared = Shared(self._patience, self.turns, self._budget, self)
        self.stateless = Stateless(self.control, log, patience=self._patience, turns=self.turns, budget=self._budget)
        self._by_id: dict[str, Session] = {}
        self._by_name: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, instance: str, owner: Owner, id: str) -> Session | None:
        """A session by the id that its client was given, for those only to whom it belongs."""
        session = self._by_id.get(id)
        return session if session is not None and (session.instance, session.owner) == (instance, owner) else None

    async def open(self, instance: str, owner: Owner, heard: Heard) -> tuple[Session | None, Said]:
        """Begin a session with its first request; the session, None if the server refused, and the answer.

        Raises `NoSession`, `NotBegun`, and what `Session.send` does but `SessionOver`.
        """
        kept = await self.stateless.take(instance, owner)
        if kept is not None:
            opened, peer = kept[0], ProcessStreams(*kept[1])
        else:
            # Only what has a stream is waited for: DTMA cannot have ended another one before it is known here.
            opened, peer = await self._started(instance, owner)
        id_ = secrets.token_hex(ID_BYTES)
        session = Session(id_, opened.session, instance, owner, opened.idle_seconds, peer, self._shared)
        self._by_id[id_] = self._by_name[opened.session] = session
        self._tell(session, "session-opened")
        begun = False
        try:
            said = await self._shake_hands(session, heard)
            begun = not said.failed and session.over is None
        finally:
            if not begun:
                session.end(Closing.CLIENT, "The session was never begun")
        if begun:
            session.begun()
        return session if begun else None, said

    async def _started(self, instance: str, owner: Owner) -> tuple[SessionOpened, Peer]:
        opened, connection = await self.control.open(instance, owner)
        self.stateless.opened(instance, opened)
        if opened.upstream is not None:
            name, of = opened.session, owner.connection
            return opened, SseServer(opened.upstream, name, of, self._client, self._budget, self._deadlines)
        if connection is None:
            raise RuntimeError("a session without a stream has an address")
        try:
            return opened, ProcessStreams(*await connected(connection))
        except BaseException:
            self.control.close_session(opened.session, Closing.CLIENT)
            raise

    async def _shake_hands(self, session: Session, heard: Heard) -> Said:
        try:
            sent = await session.send(heard)
        except SessionOver as over:
            raise NotBegun(str(over)) from None
        if sent is None:
            raise RuntimeError("a handshake is a request")
        _, outlet = sent
        try:
            async with asyncio.timeout(self._patience.handshake):
                return await _only(outlet)
        except TimeoutError:
            raise NotBegun(f"The server did not answer within {self._patience.handshake:g} s") from None

    def over(self, session: Session, why: Closing | None) -> None:
        """See `Keeper`."""
        del self._by_id[session.id], self._by_name[session.name]
        if why is not None:
            self.control.close_session(session.name, why)
        self._tell(session, "session-ended", why="host" if why is None else why.value, dropped=session.dropped)
        # Its task is looked after until it is done.
        self._look_after(asyncio.create_task(session.ended()))

    def _tell(self, session: Session, event: str, **more: object) -> None:
        # Probes come and go all the time.
        log = self._log.debug if session.owner.ticket else self._log.info
        log(event, session=session.name, instance=session.instance, sessions=len(self), **more)

    def _ended(self, ended: SessionEnded) -> None:
        """DTMA says that one is over; it may have crossed our own word for it."""
        session = self._by_name.get(ended.session)
        if session is None:
            self.stateless.ended(ended)
            return
        if ended.why is Ended.EXITED:
            self._look_after(asyncio.create_task(session.exited(ended.message)))
        else:
            session.end(None, ended.message)

    def _look_after(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all of them, and all other processes."""
        for session in tuple(self._by_id.values()):
            session.end(Closing.CLIENT, STOPPING)
        await asyncio.gather(*self._tasks, self.stateless.close(STOPPING), return_exceptions=True)
        await self._client.close()

        self.control.close()


async def _only(outlet: Outlet) -> Said:
    """The one message of a stream."""
    said = await outlet.take()
    if said is None:
        raise NotBegun("The session has ended")
    outlet.written(said)
    return said

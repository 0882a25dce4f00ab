"""Sessions for probes, which alone get them, by the ticket they show.

Of a stdio server each is a process made for it. Most such servers wait for a handshake, and some of them end when the
first thing they are asked is not one. Those that speak both show the tools of either only to whom they have not spoken
the other with. So a ticket is good for two.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from toolbox_dtma.engine.api import SessionExit, SessionStream
from toolbox_dtma.link.broker import Closing
from toolbox_dtma.sessions.records import new_name

MAX_PROCESSES = 2
"""For one ticket."""


class BrokerAway(Exception):
    """There is no session broker now. `lately`: it may only be on its way back."""

    def __init__(self, *, lately: bool) -> None:
        super().__init__("the session broker does not run")
        self.lately = lately


@dataclass(eq=False, slots=True)
class Trial:
    """One conversation, and the session in which it is held now."""

    ticket: str
    session: str
    instance: str
    stream: socket.socket | None
    """To the first process, which is made ahead; None for a server that stands. Closed once the broker got it."""
    incarnation: str
    """Of what the first process is made."""
    sessions: list[str]
    """Names of all sessions so far, for whoever ends them."""
    taken: bool = False
    """Whether the broker has the first of them."""
    unreachable: bool = False
    """Whether nothing listens where the server should."""
    silent: bool = False
    """Whether the process closed its output: it has ended, or is about to."""
    exit: SessionExit | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the process ended by itself, or cannot any more: it sees the broker's end of the session."""

    def take(self) -> socket.socket | None:
        """The stream to the first process, for the broker; None if it has it, or there is none."""
        first, self.taken = not self.taken, True
        if not first or self.stream is None:
            return None
        taken = self.stream.dup()
        self.stream.close()
        return taken

    def again(self) -> str:
        """The name of another process: how the one before ends says nothing any more."""
        self.session = new_name()
        self.sessions.append(self.session)
        self.silent, self.unreachable, self.exit, self.ended = False, False, None, asyncio.Event()
        return self.session

    async def how_it_ended(self, seconds: float) -> SessionExit | None:
        """How the process ended, if it does so within a moment; None if it goes on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        return self.exit


class Trials:
    """Those under way."""

    def __init__(self) -> None:
        self._by_ticket: dict[str, Trial] = {}

    @contextlib.asynccontextmanager
    async def holding(
        self, instance_id: str, sessions: list[str], opened: SessionStream | None
    ) -> AsyncGenerator[Trial]:
        """A trial with a started process or of a server that stands, until the end of the context.

        The name of its first session is in `sessions`.
        """
        stream, incarnation = (opened.stream, opened.incarnation) if opened is not None else (None, "")
        trial = Trial(new_name(), sessions[-1], instance_id, stream, incarnation, sessions)
        self._by_ticket[trial.ticket] = trial
        try:
            yield trial
        finally:
            del self._by_ticket[trial.ticket]
            if trial.stream is not None:
                trial.stream.close()

    def of(self, ticket: str, instance_id: str) -> Trial | None:
        """The trial that a ticket was made for; None if it is not for this instance, was used up, or is over."""
        trial = self._by_ticket.get(ticket)
        if trial is None or trial.instance != instance_id:
            return None
        return None if trial.taken and len(trial.sessions) == MAX_PROCESSES else trial

    def let_go(self, session: str, why: Closing) -> bool:
        """The broker let go of a session. Whether it is one of a trial, whose process the trial ends."""
        found = [trial for trial in self._by_ticket.values() if trial.session == session]
        for trial in found:
            trial.unreachable = why is Closing.UNREACHABLE
            trial.silent = why is Closing.ENDED and trial.stream is not None
            if not trial.silent:
                trial.ended.set()
        return bool(found)

    def exited(self, session: str, exit_: SessionExit) -> None:
        """A process ended by itself."""
        for trial in self._by_ticket.values():
            if trial.session == session and not trial.ended.is_set():
                trial.exit = exit_
                trial.ended.set()

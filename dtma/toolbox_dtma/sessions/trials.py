"""Sessions for probes: each for one conversation, which alone gets it, by the ticket it shows.

Of a stdio server that is a process made for it; of a server that stands, one more session.
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


@dataclass(eq=False, slots=True)
class Trial:
    """One of them."""

    ticket: str
    session: str
    instance: str
    stream: socket.socket | None
    """Of its process, where it has one; closed once the broker got it."""
    taken: bool = False
    """Whether the broker has it: a ticket opens one session."""
    unreachable: bool = False
    """Whether nothing listens where the server should."""
    silent: bool = False
    """Whether the process closed its output: it has ended, or is about to."""
    exit: SessionExit | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the process ended by itself, or cannot any more: it sees the broker's end of the session."""

    def take(self) -> socket.socket | None:
        """The stream if there is one, for the broker."""
        self.taken = True
        if self.stream is None:
            return None
        taken = self.stream.dup()
        self.stream.close()
        return taken

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
    async def holding(self, instance_id: str, session: str, opened: SessionStream | None) -> AsyncGenerator[Trial]:
        """A trial, with a started process or of a server that stands, until the end of the context."""
        trial = Trial(new_name(), session, instance_id, opened.stream if opened is not None else None)
        self._by_ticket[trial.ticket] = trial
        try:
            yield trial
        finally:
            del self._by_ticket[trial.ticket]
            if trial.stream is not None:
                trial.stream.close()

    def of(self, ticket: str, instance_id: str) -> Trial | None:
        """The trial that a ticket was made for; None if it is not for this instance, was used, or is over."""
        trial = self._by_ticket.get(ticket)
        unused = trial is not None and trial.instance == instance_id and not trial.taken
        return trial if unused else None

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

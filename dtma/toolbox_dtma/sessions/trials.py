"""Processes made for probes: each for one conversation, which alone gets it, by the ticket it shows."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from toolbox_dtma.engine.api import SessionExit, SessionStream
from toolbox_dtma.sessions.records import new_name


@dataclass(eq=False, slots=True)
class Trial:
    """One process."""

    ticket: str
    session: str
    instance: str
    stream: socket.socket
    """Closed once the broker got it: a ticket opens one session."""
    silent: bool = False
    """Whether the process closed its output: it has ended, or is about to."""
    exit: SessionExit | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the process ended by itself, or cannot any more: it sees the broker's end of the session."""

    def take(self) -> socket.socket:
        """The stream, for the broker."""
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
    async def holding(self, instance_id: str, session: str, opened: SessionStream) -> AsyncGenerator[Trial]:
        """A trial with a started process, until the end of the context."""
        trial = Trial(new_name(), session, instance_id, opened.stream)
        self._by_ticket[trial.ticket] = trial
        try:
            yield trial
        finally:
            del self._by_ticket[trial.ticket]
            trial.stream.close()

    def of(self, ticket: str, instance_id: str) -> Trial | None:
        """The trial that a ticket was made for; None if it is not for this instance, was used, or is over."""
        trial = self._by_ticket.get(ticket)
        unused = trial is not None and trial.instance == instance_id and trial.stream.fileno() >= 0
        return trial if unused else None

    def let_go(self, session: str, *, silent: bool) -> bool:
        """The broker let go of a session. Whether it is one of a trial, whose process the trial ends."""
        found = [trial for trial in self._by_ticket.values() if trial.session == session]
        for trial in found:
            trial.silent = silent
            if not silent:
                trial.ended.set()
        return bool(found)

    def exited(self, session: str, exit_: SessionExit) -> None:
        """A process ended by itself."""
        for trial in self._by_ticket.values():
            if trial.session == session and not trial.ended.is_set():
                trial.exit = exit_
                trial.ended.set()

"""Keeps the warm spares: as many as `spares` wants, at most one for each instance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from toolbox_dtma.engine.api import ExitListener, SessionExit, SessionStream
from toolbox_dtma.sessions import spares
from toolbox_dtma.sessions.records import Instance, Spare, new_name
from toolbox_dtma.settings import Timings

log = structlog.get_logger("toolbox_dtma.sessions")


class SessionEngine(Protocol):
    """What sessions need of `engine.api.Engine`."""

    def follow_sessions(self, listener: ExitListener) -> None: ...
    async def open_session(self, instance_id: str, session: str) -> SessionStream: ...
    def end_session(self, session: str, *, grace: int = 0) -> None: ...


class SpareKeeper:
    """Begins, discards and forgets spares; who takes one out of its `Instance` has it to himself."""

    def __init__(
        self, engine: SessionEngine, timings: Timings, clock: Callable[[], float], wake: Callable[[], None]
    ) -> None:
        """`wake` is called when `tend` has something to do."""
        self._engine = engine
        self._timings = timings
        self._clock = clock
        self._wake = wake

    def tend(self, instance_id: str, instance: Instance, now: float) -> None:
        """Begin a spare that is wanted, discard one that is not."""
        if not spares.wanted(instance.use, now):
            self.discard(instance)
        # Not beside a process that somebody waits for: each would make the other later.
        elif instance.spare is None and not instance.awaited and now >= instance.may_have_spare:
            name = new_name()
            task = asyncio.create_task(self._engine.open_session(instance_id, name), name="open spare session")
            instance.spare = spare = Spare(name, task, now)
            task.add_done_callback(lambda done: self._begun(instance, spare, done))

    def _begun(self, instance: Instance, spare: Spare, done: asyncio.Task[SessionStream]) -> None:
        if instance.spare is not spare or done.cancelled():
            return
        error = done.exception()
        if error is not None:
            log.info("no spare process could be started", why=str(error))
            self._failed(instance, spare)
        elif done.result().incarnation != instance.deployed:
            self.discard(instance)

    def exited(self, name: str, exit_: SessionExit, instances: Iterable[Instance]) -> None:
        """A process ended by itself."""
        for instance in instances:
            if instance.spare is not None and instance.spare.name == name:
                log.info("a spare process ended unused", code=exit_.code)
                self._failed(instance, instance.spare)

    def _failed(self, instance: Instance, spare: Spare) -> None:
        now, timings = self._clock(), self._timings
        self.discard(instance)
        instance.back_off = instance.back_off.after(
            now - spare.since, now, timings.spare_retry_first, timings.spare_retry_max
        )

    def discard(self, instance: Instance) -> None:
        """Have an instance's spare removed, if it has one."""
        spare, instance.spare = instance.spare, None
        if spare is not None:
            spare.discard()
            self._engine.end_session(spare.name)
            self._wake()

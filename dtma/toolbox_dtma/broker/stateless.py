"""All shared processes: one for each instance and connection that sends requests of a revision without handshake.

Most servers on stdio wait for a handshake. A process that was just started is asked which it is, unless that is known;
one that waits is no use to these requests, whose clients are told to begin with a handshake (ADR 0022).
"""

from __future__ import annotations

import asyncio
import socket

from structlog.typing import FilteringBoundLogger

from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.control import Control
from toolbox_dtma.broker.eras import ANSWERED_SECONDS, DISCOVER, PING, SILENT_SECONDS, Era, Eras, judged
from toolbox_dtma.broker.pipe import Pipe
from toolbox_dtma.broker.rewriting import Marked
from toolbox_dtma.broker.session import Owner, Patience, SessionOver
from toolbox_dtma.broker.shared import SharedProcess
from toolbox_dtma.broker.streams import ENDED, ProcessStreams
from toolbox_dtma.broker.turns import Turns
from toolbox_dtma.gateway.skimming import is_quick, run
from toolbox_dtma.link.broker import Closing, Ended, SessionEnded, SessionOpened

_Key = tuple[str, Owner]


class OtherEra(Exception):
    """The server waits for a handshake, as far as is known now."""


async def connected(connection: socket.socket) -> ProcessStreams:
    """A stream that DTMA has passed, which is closed if this fails."""
    try:
        connection.setblocking(False)
        return ProcessStreams(*await asyncio.open_unix_connection(sock=connection))
    except BaseException:
        connection.close()
        raise


class Stateless:
    """Opens, finds and ends them."""

    def __init__(
        self,
        control: Control,
        log: FilteringBoundLogger,
        *,
        patience: Patience,
        turns: Turns,
        budget: Budget,
    ):
        self._control = control
        self._log = log
        self._patience = patience
        self.turns = turns
        self._budget = budget
        self._eras = Eras(asyncio.get_running_loop().time)
        self._serving: dict[_Key, SharedProcess] = {}
        self._opening: dict[_Key, asyncio.Task[SharedProcess]] = {}
        self._kept: dict[_Key, SharedProcess] = {}
        """Those that wait for a handshake, or may: for whoever begins with one, or for an answer that is late."""
        self._by_name: dict[str, SharedProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = ""

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, instance: str, owner: Owner) -> SharedProcess | None:
        """The process that serves this connection now, if one does."""
        return self._serving.get((instance, owner))

    async def get(self, instance: str, owner: Owner) -> SharedProcess:
        """The same, started if need be: one for all who ask meanwhile.

        Raises `OtherEra`, `NoSession`, `SessionOver`, `InputFull`.
        """
        key = (instance, owner)
        serving = self._serving.get(key)
        if serving is not None:
            return serving
        opening = self._opening.get(key)
        if opening is None:
            # A probe's process is there already, and shows what it is made of: nothing is saved by what is known.
            if key in self._kept or (not owner.ticket and self._eras.of(instance) is Era.HANDSHAKE):
                raise OtherEra
            opening = self._opening[key] = asyncio.create_task(self._open(key))
            opening.add_done_callback(lambda done: self._opened(key, done))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled():
                raise SessionOver(self._stopping or ENDED) from None
            raise

    async def take(self, instance: str, owner: Owner) -> tuple[SessionOpened, ProcessStreams] | None:
        """A process of this probe that waits for a handshake, for the session which begins with one."""
        key = (instance, owner)
        process = self._kept.get(key) if owner.ticket else None
        if process is None or process.owes:
            # What it owes could be taken for an answer to its new client.
            return None
        del self._kept[key], self._by_name[process.name]
        try:
            streams = await process.release()
        except BaseException:
            process.end(Closing.CLIENT, "It is not used")
            raise
        return None if streams is None else (process.opened, streams)

    def opened(self, instance: str, opened: SessionOpened) -> None:
        """A process was started, for whatever."""
        self._eras.opened(instance, opened.incarnation)

    def _opened(self, key: _Key, done: asyncio.Task[SharedProcess]) -> None:
        del self._opening[key]
        if not done.cancelled():
            # Looked at: whoever asked may have hung up.
            done.exception()

    async def _open(self, key: _Key) -> SharedProcess:
        instance, owner = key
        opened, connection = await self._control.open(instance, owner)
        self.opened(instance, opened)
        if connection is None:
            # It has an address: of that transport there is no later revision.
            self._eras.learn(instance, opened.incarnation, Era.HANDSHAKE, ANSWERED_SECONDS)
            self._control.close_session(opened.session, Closing.CLIENT)
            raise OtherEra
        try:
            streams = await connected(connection)
        except BaseException:
            self._control.close_session(opened.session, Closing.CLIENT)
            raise
        pipe = Pipe(streams, self._budget, self._patience.input)
        process = SharedProcess(
            opened, instance, owner, pipe, patience=self._patience, turns=self.turns, over=self._over
        )
        self._by_name[process.name] = process
        self._log.info("process-opened", session=process.name, instance=instance, processes=len(self))
        era = self._eras.of(instance)
        if era is None:
            try:
                era = await self._asked(process)
            except BaseException:
                process.end(Closing.CLIENT, "It could not be asked what it speaks")
                raise
        if process.over is not None:
            raise SessionOver(process.over) if era is Era.STATELESS else OtherEra
        if era is Era.STATELESS:
            self._serving[key] = process
            return process
        if era is Era.HANDSHAKE and not owner.ticket:
            process.end(Closing.CLIENT, "The server waits for a handshake")
        else:
            self._kept[key] = process
        raise OtherEra

    async def _asked(self, process: SharedProcess) -> Era | None:
        """What the process says it speaks; None where it is still silent."""
        try:
            answer = await process.ask(DISCOVER)
            patience = self._patience
            seconds, present = patience.discover, patience.present
            if process.owner.ticket:
                seconds, present = patience.probed, patience.present_probed
            try:
                async with asyncio.timeout(seconds):
                    said = await self._first_word(process, answer, present)
            except TimeoutError:
                self._learned(process, Era.HANDSHAKE, SILENT_SECONDS)
                self._look_after(asyncio.create_task(self._late(process, answer)))
                return None
        except SessionOver:
            if not process.ended_itself:
                raise
            # Some servers end when the first thing they are asked is not a handshake.
            return self._learned(process, Era.HANDSHAKE, SILENT_SECONDS)
        return await self._judge(process, said)

    async def _first_word(self, process: SharedProcess, answer: asyncio.Future[Marked], present: float) -> Marked:
        """An answer. Raises `SessionOver`; `TimeoutError` for a process that reads what it is asked, and is silent.

        One that has not started yet does not answer a ping either, which servers do also before a handshake.
        """
        done, _ = await asyncio.wait({answer}, timeout=self._patience.quiet)
        if not done:
            await asyncio.wait({answer, await process.ask(PING)}, return_when=asyncio.FIRST_COMPLETED)
            done, _ = await asyncio.wait({answer}, timeout=present)
        if not done:
            raise TimeoutError
        return answer.result()

    async def _late(self, process: SharedProcess, answer: asyncio.Future[Marked]) -> None:
        """One that was silent may only have been slow: what it says later counts for the next request."""
        key = (process.instance, process.owner)
        try:
            async with asyncio.timeout(self._patience.late):
                era = await self._judge(process, await asyncio.shield(answer))
        except TimeoutError:
            era = Era.HANDSHAKE
        except SessionOver:
            return
        if self._kept.get(key) is not process:
            return
        if era is Era.STATELESS:
            del self._kept[key]
            self._serving[key] = process
        elif not process.owner.ticket:
            process.end(Closing.CLIENT, "The server waits for a handshake")

    async def _judge(self, process: SharedProcess, answer: Marked) -> Era:
        work = judged(answer.raw)
        era = run(work) if is_quick(answer.raw) else await self.turns.run(work)
        return self._learned(process, era, ANSWERED_SECONDS)

    def _learned(self, process: SharedProcess, era: Era, seconds: float) -> Era:
        self._eras.learn(process.instance, process.opened.incarnation, era, seconds)
        return era

    def _over(self, process: SharedProcess, why: Closing | None) -> None:
        key = (process.instance, process.owner)
        self._by_name.pop(process.name, None)
        for held in (self._serving, self._kept):
            if held.get(key) is process:
                del held[key]
        if why is not None:
            self._control.close_session(process.name, why)
        self._log.info(
            "process-ended",
            session=process.name,
            instance=process.instance,
            why="host" if why is None else why.value,
            dropped=process.dropped,
            processes=len(self),
        )
        self._look_after(asyncio.create_task(process.ended()))

    def ended(self, ended: SessionEnded) -> None:
        """DTMA says that one is over; it may have crossed our own word for it, or be a session."""
        process = self._by_name.get(ended.session)
        if process is None:
            return
        if ended.why is Ended.EXITED:
            self._look_after(asyncio.create_task(process.exited(ended.message)))
        else:
            process.end(None, ended.message)

    def _look_after(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, message: str) -> None:
        """End all of them."""
        self._stopping = message
        opening = tuple(self._opening.values())
        for each in opening:
            each.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for process in tuple(self._by_name.values()):
            process.end(Closing.CLIENT, message)
        await asyncio.gather(*self._tasks, return_exceptions=True)

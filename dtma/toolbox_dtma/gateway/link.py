"""A worker's end of DTMA's socket: policy in, acknowledgements and probe results out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from toolbox_dtma.gateway.exchanges import Cause, Exchanges
from toolbox_dtma.gateway.reporting import Reporter
from toolbox_dtma.gateway.state import PolicyOutOfOrder, PolicyState
from toolbox_dtma.link.framing import FrameError, encode_frame, read_frame
from toolbox_dtma.link.messages import (
    TO_WORKER,
    Ack,
    CallsTaken,
    Delta,
    Hello,
    Message,
    Ping,
    Pong,
    ProbeRequest,
    ProbeResult,
    Snapshot,
    Vitals,
)

CONNECT_SECONDS = 2.0
SEND_SECONDS = 5.0
CLOSING_SECONDS = 1.0
"""How long an ack waits for the servers' side of revoked calls; the clients' side is closed before."""
FIRST_BACK_OFF = 0.05
LONGEST_BACK_OFF = 1.0
MAX_PROBES = 4
VITALS_SECONDS = 5.0

Prober = Callable[[ProbeRequest], Awaitable[ProbeResult]]
_Closing = tuple[int, list[asyncio.Task[object]]]


class Link:
    """Keeps one connection to DTMA and obeys it."""

    def __init__(
        self,
        socket: Path,
        *,
        worker: str,
        pid: int,
        state: PolicyState,
        exchanges: Exchanges,
        prober: Prober,
        vitals: Callable[[], Vitals],
        reporter: Reporter,
        log: FilteringBoundLogger,
    ):
        self._socket = socket
        self._worker = worker
        self._pid = pid
        self._state = state
        self._exchanges = exchanges
        self._prober = prober
        self._vitals = vitals
        self._reporter = reporter
        self._log = log
        self._probes = asyncio.Semaphore(MAX_PROBES)
        self._connected = True
        self.informed = asyncio.Event()
        """Set once there is a policy to serve by."""

    async def run(self) -> None:
        """Connect, obey, and connect again, until cancelled."""
        back_off = FIRST_BACK_OFF
        while True:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    reader, writer = await asyncio.open_unix_connection(self._socket)
            except (OSError, TimeoutError) as error:
                self._note_away(type(error).__name__)
            else:
                revision = self._state.revision
                await self._converse(reader, writer)
                if self._state.revision != revision:
                    back_off = FIRST_BACK_OFF
            # Jitter: all workers lose the socket in the same moment.
            await asyncio.sleep(back_off * random.uniform(0.5, 1.0))
            back_off = min(back_off * 2, LONGEST_BACK_OFF)

    def _note_away(self, error: str) -> None:
        if self._connected:
            self._connected = False
            self._log.warning("dtma-away", socket=str(self._socket), error=error)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from hello to its end."""
        closing: asyncio.Queue[_Closing] = asyncio.Queue()
        helpers = {
            asyncio.create_task(self._acknowledge(closing, writer)),
            asyncio.create_task(self._report(writer)),
            asyncio.create_task(self._tell_vitals(writer)),
        }
        try:
            await self._send(writer, Hello(worker=self._worker, pid=self._pid, revision=self._state.revision))
            if not self._connected:
                self._connected = True
                self._log.info("dtma-back", socket=str(self._socket))
            while (payload := await read_frame(reader)) is not None:
                await self._obey(payload, writer, closing, helpers)
            self._note_away("end of stream")
        except (OSError, TimeoutError, FrameError, ValidationError, PolicyOutOfOrder) as error:
            # The values inside a message may be keys, so only its kind of fault is named.
            self._note_away(type(error).__name__)
        finally:
            self._state.connection_lost()
            self._end_of_grace()
            writer.close()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    def _end_of_grace(self) -> None:
        left = self._state.grace_left
        if left is None:
            return
        if left > 0:
            # Timers may fire a moment early, and an earlier loss may have started this one.
            asyncio.get_running_loop().call_later(left + 0.005, self._end_of_grace)
        else:
            self._exchanges.abort_all(Cause.NO_POLICY)

    async def _obey(
        self,
        payload: bytes,
        writer: asyncio.StreamWriter,
        closing: asyncio.Queue[_Closing],
        helpers: set[asyncio.Task[None]],
    ) -> None:
        message = TO_WORKER.validate_json(payload)
        if isinstance(message, Snapshot | Delta):
            applied = self._state.apply(message)
            if applied is not None:
                self.informed.set()
                # No await since `apply`: whatever runs next in this process runs under the new policy.
                ending = self._exchanges.recheck(applied.touched, self._state)
                closing.put_nowait((applied.revision, ending))
        elif isinstance(message, Ping):
            await self._send(writer, Pong(nonce=message.nonce))
        elif isinstance(message, CallsTaken):
            self._reporter.taken(message.stream, message.batch)
        else:
            task = asyncio.create_task(self._probe(message, writer))
            helpers.add(task)
            task.add_done_callback(helpers.discard)

    async def _acknowledge(self, closing: asyncio.Queue[_Closing], writer: asyncio.StreamWriter) -> None:
        """Acknowledge revisions in order, each once what it revoked has ended."""
        while True:
            revision, ending = await closing.get()
            if ending:
                _, pending = await asyncio.wait(ending, timeout=CLOSING_SECONDS)
                if pending:
                    self._log.warning("slow-closing", revision=revision, pending=len(pending))
            try:
                await self._send(writer, Ack(revision=revision))
            except (OSError, TimeoutError):
                # The reading side meets the same broken connection and reports it.
                writer.close()
                return

    async def _tell_vitals(self, writer: asyncio.StreamWriter) -> None:
        """Tell now and then how this worker fares."""
        while True:
            await asyncio.sleep(VITALS_SECONDS)
            try:
                await self._send(writer, self._vitals())
            except (OSError, TimeoutError):
                writer.close()
                return

    async def _probe(self, request: ProbeRequest, writer: asyncio.StreamWriter) -> None:
        async with self._probes:
            result = await self._prober(request)
        try:
            await self._send(writer, result)
        except (OSError, TimeoutError):
            writer.close()

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        """Tell of calls."""
        try:
            await self._reporter.run(lambda frame: self._write(writer, frame))
        except (OSError, TimeoutError):
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, message: Message) -> None:
        """Send one message. Raises `OSError` or `TimeoutError`."""
        await self._write(writer, encode_frame(message))

    async def _write(self, writer: asyncio.StreamWriter, frame: bytes) -> None:
        writer.write(frame)
        async with asyncio.timeout(SEND_SECONDS):
            await writer.drain()

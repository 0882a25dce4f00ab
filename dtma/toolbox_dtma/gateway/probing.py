"""A worker's side of its prober process: started when needed, killed when it hangs, replaced when it is gone."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from dataclasses import dataclass, field

from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from toolbox_dtma.link.framing import FrameError, encode_frame, read_frame
from toolbox_dtma.link.messages import TO_DTMA, Hello, ProbeRequest, ProbeResult
from toolbox_dtma.wire import ProbeReport

MARGIN_SECONDS = 5.0
"""How far beyond a probe's own deadline the prober may answer: its farewell to the server included."""
START_SECONDS = 60.0
"""A start takes a second. On a busy machine it takes many, and beginning it anew would take as many again."""
END_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class _Process:
    """One prober process and what it was asked."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    waiting: dict[int, asyncio.Future[ProbeResult]] = field(default_factory=dict[int, "asyncio.Future[ProbeResult]"])
    reading: asyncio.Task[None] | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """It has said that it takes requests, or has ended."""


class Probing:
    """Runs probes in a process of its own."""

    def __init__(self, log: FilteringBoundLogger):
        self._log = log
        self._current: _Process | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start the process before it is needed: its imports take a second."""
        await self._running()

    async def probe(self, request: ProbeRequest) -> ProbeResult:
        """Hold the conversation. Never raises for what a server or the process does."""
        current = await self._running()
        future: asyncio.Future[ProbeResult] = asyncio.get_running_loop().create_future()
        current.waiting[request.probe] = future
        current.writer.write(encode_frame(request))
        try:
            async with asyncio.timeout(START_SECONDS):
                await current.started.wait()
            async with asyncio.timeout(request.longest + MARGIN_SECONDS):
                return await future
        except TimeoutError:
            self._log.warning("prober-hangs", pid=current.process.pid)
            self._end(current)
            return _failed(request.probe, "the probe of it hung")
        finally:
            current.waiting.pop(request.probe, None)

    async def _running(self) -> _Process:
        async with self._starting:
            if self._current is None:
                self._current = await self._start()
            return self._current

    async def _start(self) -> _Process:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-m", "toolbox_dtma.gateway.prober"]
            command += ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            # Never from a thread: the kernel would take the thread's end for the parent's and kill the child.
            process = await asyncio.create_subprocess_exec(
                *command, pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        started = _Process(process, reader, writer)
        started.reading = asyncio.create_task(self._read(started))
        return started

    async def _read(self, current: _Process) -> None:
        try:
            while (payload := await read_frame(current.reader)) is not None:
                match TO_DTMA.validate_json(payload):
                    case Hello():
                        current.started.set()
                    case ProbeResult() as result:
                        future = current.waiting.get(result.probe)
                        if future is not None and not future.done():
                            future.set_result(result)
                    case other:
                        raise FrameError(f"unexpected {other.kind} of a prober")
        except (OSError, FrameError, ValidationError) as error:
            self._log.warning("prober-broken", pid=current.process.pid, error=type(error).__name__)
        finally:
            self._end(current)
            async with asyncio.timeout(END_SECONDS):
                code = await current.process.wait()
            self._log.info("prober-ended", pid=current.process.pid, code=code)

    def _end(self, current: _Process) -> None:
        """Kill it; the next probe starts another. Whoever waits is told that this server's probe failed."""
        if self._current is current:
            self._current = None
        current.started.set()
        current.writer.close()
        if current.process.returncode is None:
            current.process.kill()
        for number, future in tuple(current.waiting.items()):
            if not future.done():
                future.set_result(_failed(number, "the process that probed it ended"))

    async def close(self) -> None:
        """End the process."""
        current = self._current
        if current is not None and current.reading is not None:
            self._end(current)
            await asyncio.gather(current.reading, return_exceptions=True)


def _failed(probe: int, message: str) -> ProbeResult:
    return ProbeResult(probe=probe, report=ProbeReport(ok=False, message=message))

"""A gateway worker that does what a test says. Also a process of its own: `python worker.py SOCKET`."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from toolbox_dtma.link.framing import FrameError, encode_frame, read_frame
from toolbox_dtma.link.messages import (
    TO_WORKER,
    Ack,
    Calls,
    CallsTaken,
    Hello,
    KeyRing,
    Message,
    Ping,
    Pong,
    ProbeRequest,
    ProbeResult,
    SigningKey,
    Snapshot,
    Surface,
)
from toolbox_dtma.policy.contents import Contents
from toolbox_dtma.wire import ProbeReport, ToolSummary

Answer = Callable[[ProbeRequest], ProbeResult | None]


def works(*tools: str) -> Answer:
    """Every probe succeeds and finds these tools."""

    def answer(request: ProbeRequest) -> ProbeResult:
        report = ProbeReport(ok=True, tools=tuple(ToolSummary(name=t) for t in tools), tools_total=len(tools))
        return ProbeResult(probe=request.probe, report=report, surface=Surface(tools=tools))

    return answer


def fails(message: str, *, refused: bool = False) -> Answer:
    """Every probe fails."""
    return lambda request: ProbeResult(
        probe=request.probe, report=ProbeReport(ok=False, message=message), refused=refused
    )


class ScriptedWorker:
    """Applies what it is told; `acks` and `pongs` switch its answers off."""

    def __init__(self, *, acks: bool = True, pongs: bool = True, probes: Answer | None = None):
        self.acks = acks
        self.pongs = pongs
        self.probes: Answer = probes or works("get_time")
        self.revision = 0
        self.snapshots = 0
        self.probed = 0
        self.ended = False
        self.rings: list[KeyRing] = []
        """Every key ring it had, one after the other."""
        self.taken: list[tuple[str, int]] = []
        """Batches of calls that DTMA acknowledged."""
        self._parts: list[Snapshot] = []
        ring = KeyRing(signing="none", keys=(SigningKey(kid="none", secret=base64.b64encode(b"-").decode()),))
        self.policy = Contents(ring)
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, socket: Path, *, revision: int = 0) -> None:
        """One connection from hello to its end."""
        reader, writer = await asyncio.open_unix_connection(socket)
        self._writer = writer
        try:
            await self._send(Hello(worker="scripted", pid=os.getpid(), revision=revision))
            while (payload := await read_frame(reader)) is not None:
                await self._obey(payload)
        except (ConnectionError, FrameError):
            # DTMA hung up in the middle: for a worker that is an end like any other.
            return
        finally:
            self.ended = True
            writer.close()

    async def _obey(self, payload: bytes) -> None:
        message = TO_WORKER.validate_json(payload)
        match message:
            case Snapshot():
                self._parts.append(message)
                if len(self._parts) == message.parts:
                    assert [part.part for part in self._parts] == list(range(message.parts))
                    self.policy = Contents(self.policy.keyring)
                    for part in self._parts:
                        self.policy.apply(part.change)
                    self._parts = []
                    self.snapshots += 1
                    await self._applied(message.revision)
            case Ping():
                if self.pongs:
                    await self._send(Pong(nonce=message.nonce))
            case ProbeRequest():
                self.probed += 1
                result = self.probes(message)
                if result is not None:
                    await self._send(result)
            case CallsTaken():
                self.taken.append((message.stream, message.batch))
            case _:
                assert message.revision > self.revision
                self.policy.apply(message.change)
                await self._applied(message.revision)

    async def _applied(self, revision: int) -> None:
        self.revision = revision
        if self.rings[-1:] != [self.policy.keyring]:
            self.rings.append(self.policy.keyring)
        if self.acks:
            await self.acknowledge()

    async def acknowledge(self) -> None:
        """Acknowledge what was applied last."""
        await self._send(Ack(revision=self.revision))

    async def tell(self, message: Calls) -> None:
        """Tell of calls, and wait until DTMA has them."""
        await self._send(message)
        async with asyncio.timeout(20):
            while (message.stream, message.batch) not in self.taken:
                if self.ended:
                    raise ConnectionError("DTMA hung up")
                await asyncio.sleep(0.005)

    async def _send(self, message: Message) -> None:
        await self.raw(encode_frame(message))

    async def raw(self, frame: bytes) -> None:
        """Send bytes."""
        assert self._writer is not None
        self._writer.write(frame)
        await self._writer.drain()


@asynccontextmanager
async def connected(worker: ScriptedWorker, socket: Path, *, revision: int = 0) -> AsyncGenerator[ScriptedWorker]:
    """The worker, with its first snapshot applied; hung up at the end."""
    task = asyncio.create_task(worker.run(socket, revision=revision))
    try:
        async with asyncio.timeout(20):
            while not worker.snapshots:
                if task.done():
                    task.result()
                    raise AssertionError("DTMA hung up before the snapshot")
                await asyncio.sleep(0.005)
        yield worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(ScriptedWorker().run(Path(sys.argv[1])))

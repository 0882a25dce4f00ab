"""One gateway worker's connection, as the policy server sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from toolbox_dtma.link.framing import encode_frame
from toolbox_dtma.link.messages import ProbeRequest, ProbeResult, Vitals
from toolbox_dtma.policy.members import Member

log = structlog.get_logger("toolbox_dtma.policy")


_PROBE_MARGIN = 2.0
"""Seconds that a worker may take to tell what it found."""


class NoWorker(Exception):
    """No gateway worker could run the probe; says nothing about the instance."""


@dataclass(eq=False, slots=True)
class Worker:
    """A connection, and what is asked over it."""

    member: Member
    writer: asyncio.StreamWriter
    backlog: int
    """Bytes it may leave unread before it is disconnected."""
    asked_at: float
    """When it was last asked for a sign of life, in monotonic seconds."""
    vitals: Vitals | None = None
    """What it said last about itself."""
    unanswered: int = 0
    """So often in a row without an answer."""
    telling: bool = False
    """Whether a message about calls has yet to be acknowledged to it."""
    probes: dict[int, asyncio.Future[ProbeResult]] = field(default_factory=dict[int, "asyncio.Future[ProbeResult]"])

    def send(self, frame: bytes) -> None:
        """Queue a frame; one that does not read is disconnected."""
        transport = self.writer.transport
        if transport.is_closing():
            return
        self.writer.write(frame)
        if transport.get_write_buffer_size() > self.backlog:
            log.warning("gateway worker does not read; disconnected", pid=self.member.process.pid)
            transport.abort()

    async def probe(self, request: ProbeRequest) -> ProbeResult:
        """What the worker finds. Raises `NoWorker` when it goes away or does not answer in time."""
        future: asyncio.Future[ProbeResult] = asyncio.get_running_loop().create_future()
        self.probes[request.probe] = future
        self.send(encode_frame(request))
        try:
            # The worker keeps the deadline itself; the margin only catches one that does not answer.
            async with asyncio.timeout(request.longest + _PROBE_MARGIN):
                return await future
        except TimeoutError:
            raise NoWorker("the gateway worker did not answer the probe in time") from None
        finally:
            self.probes.pop(request.probe, None)

    def probed(self, result: ProbeResult) -> None:
        """The worker has found this; nobody may wait for it any more."""
        future = self.probes.pop(result.probe, None)
        if future is not None and not future.done():
            future.set_result(result)

    def fail_probes(self) -> None:
        """Tell those who wait for a probe that no answer will come."""
        for future in self.probes.values():
            if not future.done():
                future.set_exception(NoWorker("the gateway worker that ran the probe went away"))

"""Handing call records over to DTMA, one message at a time, each until it is taken."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable

from toolbox_dtma.gateway.backlog import Backlog, Batch
from toolbox_dtma.link.calls import CallEntry
from toolbox_dtma.link.framing import encode_payload
from toolbox_dtma.link.messages import LINK_VERSION

REPORT_SECONDS = 0.25
"""Longest time that a record waits for others before it is sent."""
FULL_BYTES = 64 * 1024
"""So much waiting is sent at once."""

Send = Callable[[bytes], Awaitable[None]]


class Reporter:
    """What one worker has to tell. `run` for each connection; between connections nothing is lost."""

    def __init__(self, backlog: Backlog):
        self._backlog = backlog
        self.refusals: Counter[str] = Counter()
        """Requests answered by the gateway itself, by reason, that DTMA does not know of."""
        self._batch: Batch | None = None
        self._telling: dict[str, int] = {}
        self._something = asyncio.Event()
        self._hurry = asyncio.Event()
        self._taken = asyncio.Event()
        self._done = asyncio.Event()
        self._finishing = False
        if not self._is_done:
            self.wake()

    @property
    def _is_done(self) -> bool:
        return self._backlog.is_empty and not self.refusals

    def wake(self) -> None:
        """There is something to tell."""
        self._something.set()
        if self._backlog.waiting_bytes >= FULL_BYTES:
            self._hurry.set()

    async def run(self, send: Send) -> None:
        """Tell DTMA over one connection, until cancelled. Raises what `send` raises."""
        while True:
            if self._batch is None:
                await self._something.wait()
                await self._pause()
                self._prepare()
            if self._batch is not None:
                self._taken.clear()
                await send(self._frame(self._batch))
                await self._taken.wait()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                await self._hurry.wait()
        except TimeoutError:
            return

    def _prepare(self) -> None:
        self._something.clear()
        if not self._finishing:
            self._hurry.clear()
        self._batch = self._backlog.batch(anyway=bool(self.refusals))
        self._telling = dict(self.refusals)

    def _frame(self, batch: Batch) -> bytes:
        # The entries are JSON already, and validated by nobody but DTMA.
        head = {
            "v": LINK_VERSION,
            "kind": "calls",
            "stream": batch.stream,
            "batch": batch.number,
            "dropped": batch.dropped,
            "lost": batch.lost,
            "refusals": self._telling,
        }
        entries = b",".join(batch.entries)
        return encode_payload(json.dumps(head).encode()[:-1] + b',"calls":[' + entries + b"]}")

    def taken(self, stream: str, number: int) -> None:
        """DTMA has a batch."""
        if not self._backlog.acknowledged(stream, number):
            return
        self.refusals.subtract(self._telling)
        for reason in [reason for reason, count in self.refusals.items() if not count]:
            del self.refusals[reason]
        self._batch, self._telling = None, {}
        self._taken.set()
        if self._is_done:
            self._done.set()
        else:
            self.wake()

    async def hand_over(self, seconds: float) -> int:
        """Send everything now. Returns the bytes of records that DTMA has not taken after this time: 0 is success."""
        self._finishing = True
        self._hurry.set()
        try:
            async with asyncio.timeout(seconds):
                while not self._is_done:
                    self._done.clear()
                    await self._done.wait()
        except TimeoutError:
            return max(self._backlog.waiting_bytes, 1)
        return 0


def is_entry(raw: bytes) -> bool:
    """Whether DTMA would accept an entry."""
    try:
        CallEntry.model_validate_json(raw)
    except ValueError:
        return False
    return True

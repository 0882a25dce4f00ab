"""Running without a record: allowed, said once in the log, and visible in the metrics as no record at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from toolbox_dtma.wire import CallRecord
from toolbox_operator.api.meta import Kind
from toolbox_operator.domain.usage import Use
from toolbox_operator.runtime import Clock
from toolbox_operator.store.api import Kept, Live, Row
from toolbox_operator.store.calls import judge, tally

log = structlog.get_logger(__name__)


class NoRecord:
    """Takes everything and keeps nothing: for an operator that was started without a database URL."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used: dict[str, Use] = {}
        log.warning("record.off", hint="no database URL was given: history and joins will not be available")

    @property
    def healthy(self) -> bool:
        """Nothing is owed, so nothing is late."""
        return True

    def submit(self, row: Row) -> None:
        """Nothing is kept."""

    def close(self, row: Row, reason: str) -> None:
        """Nothing is kept."""

    def sweep(self, live: Live) -> None:
        """Nothing is kept."""

    def vanished(self, kind: Kind, namespace: str, name: str) -> None:
        """Nothing is kept."""

    def log(self, *, object_kind: str, object_id: str, type_: str, reason: str, message: str) -> None:
        """Nothing is kept."""

    async def keep_calls(self, calls: Sequence[CallRecord], shown: Mapping[str, int]) -> Kept:
        """Only counted, on top of what status shows: so the hosts may forget them."""
        judged = judge(calls, self._clock.now())
        used: dict[str, Use] = {}
        for id_, use in tally(judged.calls).items():
            before = self._used.get(id_, Use(shown.get(id_, 0), use.last))
            self._used[id_] = used[id_] = Use(before.calls + use.calls, max(before.last, use.last))
        return Kept(added=len(judged.calls), refused=judged.refused, used=used)

    async def used(self) -> Mapping[str, Use]:
        """What was counted in this process; what one before counted is in no place but status."""
        return self._used

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.Event().wait()

    async def flush(self, deadline: float) -> bool:
        """Nothing to wait for."""
        return True

"""Running without a record: allowed, said once in the log, and visible in the metrics as no record at all."""

from __future__ import annotations

import asyncio

import structlog

from toolbox_operator.api.meta import Kind
from toolbox_operator.store.api import Live, Row

log = structlog.get_logger(__name__)


class NoRecord:
    """Takes everything and keeps nothing: for an operator that was started without a database URL."""

    def __init__(self) -> None:
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

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.Event().wait()

    async def flush(self, deadline: float) -> bool:
        """Nothing to wait for."""
        return True

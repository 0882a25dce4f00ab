"""Call records for tests, and the part of the record that keeps them, in memory: it outlives the operator's process."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from toolbox_dtma.wire import CallOutcome, CallRecord
from toolbox_operator.domain.usage import Use
from toolbox_operator.store.api import Kept
from toolbox_operator.store.ids import uuid7

_RNG = random.Random(7)


def call(connection: str, at: datetime, *, instance: str = "", **more: Any) -> CallRecord:
    """One call with a connection."""
    given: dict[str, Any] = {
        "id": uuid.UUID(uuid7(at, _RNG)),
        "connection": connection,
        "namespace": "mcp-system",
        "agent": "research-bot",
        "instance": instance or str(uuid.UUID(int=1)),
        "tool": "get_time",
        "outcome": CallOutcome.OK,
        "started_at": at,
        "duration_ms": 12,
        "bytes_in": 100,
        "bytes_out": 200,
        "protocol_version": "2025-11-25",
    }
    return CallRecord(**{**given, **more})


@dataclass
class MemoryCalls:
    """As the record in PostgreSQL: each call once, and a sum for each connection."""

    rows: dict[uuid.UUID, CallRecord] = field(default_factory=dict[uuid.UUID, CallRecord])
    sums: dict[str, Use] = field(default_factory=dict[str, Use])
    healthy: bool = True
    away: bool = False
    """Nothing is taken, though nobody knows yet."""
    committed: Callable[[], None] = lambda: None
    """Called when a batch is committed, before anybody is told."""

    async def keep_calls(self, calls: Sequence[CallRecord], shown: Mapping[str, int]) -> Kept | None:
        if self.away:
            return None
        new = [each for each in calls if each.id not in self.rows]
        for each in new:
            self.rows[each.id] = each
            before = self.sums.get(each.connection, Use(0, each.started_at))
            sum_ = max(before.calls, shown.get(each.connection, 0)) + 1
            self.sums[each.connection] = Use(sum_, max(before.last, each.started_at))
        self.committed()
        return Kept(added=len(new), used={each.connection: self.sums[each.connection] for each in new})

    async def used(self) -> Mapping[str, Use] | None:
        return None if self.away else dict(self.sums)

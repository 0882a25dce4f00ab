"""How much a connection is used, and when its status may say so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from toolbox_operator.api.connection import AgentMCPConnectionStatus


@dataclass(frozen=True, slots=True)
class Use:
    """How often a connection was used, and when last."""

    calls: int
    last: datetime
    """When the newest call began; whole seconds where it is shown."""


def shown_use(status: AgentMCPConnectionStatus) -> Use | None:
    """What a status says; None while it knows of no call."""
    if status.calls is None or status.last_used_time is None:
        return None
    return Use(status.calls, status.last_used_time)


def grown(before: Use | None, counted: Use | None) -> Use | None:
    """What is true after both: neither number goes back, whatever was restored or counted anew."""
    if before is None or counted is None:
        return counted or before
    return Use(max(before.calls, counted.calls), max(before.last, counted.last))


def wait_left(shown: Use | None, written: float | None, begun: float, now: float, every: float) -> float:
    """Seconds until a status may say more than `shown`; 0: now. All times are of one monotonic clock.

    `written`: when this process last had it say more. A process before, which ended at `begun` at the latest, may
    have done so just then, unless nothing is shown yet.
    """
    if written is None and shown is None:
        return 0.0
    return max(0.0, (begun if written is None else written) + every - now)

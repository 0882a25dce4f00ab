"""How many sessions of a server are open, and when its status may say so. Pure."""

from __future__ import annotations

from toolbox_dtma.wire import InstanceReport
from toolbox_operator.api.mcpserver import MCPServerStatus


def only_counted(before: MCPServerStatus, after: MCPServerStatus) -> bool:
    """Whether nothing but the number of open sessions makes the second status another one than the first."""
    if before.sessions is None or after.sessions is None or before.sessions.open == after.sessions.open:
        return False
    return with_open(after, before.sessions.open) == before


def with_open(status: MCPServerStatus, number: int) -> MCPServerStatus:
    """The status with so many open sessions."""
    if status.sessions is None:
        return status
    return status.model_copy(update={"sessions": status.sessions.model_copy(update={"open": number})})


def wait_left(written: float | None, begun: float, now: float, every: float) -> float:
    """Seconds until a status may say another number; 0: now. All times are of one monotonic clock.

    `written`: when this process last wrote the status. A process before, which ended at `begun` at the latest, may
    have done so just then.
    """
    return max(0.0, (begun if written is None else written) + every - now)


def same_but_sessions(one: InstanceReport, other: InstanceReport) -> bool:
    """Whether two reports say the same of everything but sessions."""
    return _without_sessions(one) == _without_sessions(other)


def _without_sessions(report: InstanceReport) -> InstanceReport:
    observed = report.observed.model_copy(update={"sessions": None, "seq": 0})
    return report.model_copy(update={"observed": observed})

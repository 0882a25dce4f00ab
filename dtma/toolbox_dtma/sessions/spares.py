"""The warm spare of a stdio server: a started process that nobody has spoken to, for whoever comes next. Pure.

It is one of the sessions that the server may have, and is there only while the server is in use.
"""

from __future__ import annotations

from dataclasses import dataclass

LONG_ENOUGH = 60.0
"""Seconds after which a spare's end says nothing about the next one."""


@dataclass(frozen=True, slots=True)
class Use:
    """How an instance is used. Times are monotonic seconds."""

    deployed: bool
    open_sessions: int
    max_sessions: int
    last_used: float | None
    """When a connection's session was last begun or ended; None if none was."""
    idle_seconds: float


def wanted(use: Use, now: float) -> bool:
    """Whether there should be a spare."""
    if not use.deployed or use.last_used is None or use.open_sessions >= use.max_sessions:
        return False
    return use.open_sessions > 0 or now - use.last_used < use.idle_seconds


def unwanted_at(use: Use) -> float | None:
    """When a spare stops being wanted by itself; None if it does not."""
    return None if use.open_sessions or use.last_used is None else use.last_used + use.idle_seconds


@dataclass(frozen=True, slots=True)
class BackOff:
    """Spares that ended unused: the next one comes ever later."""

    failures: int = 0
    not_before: float = 0.0

    def after(self, lived: float, now: float, first: float, longest: float) -> BackOff:
        """One ended, or could not be made, after so many seconds."""
        failures = 1 if lived >= LONG_ENOUGH else self.failures + 1
        return BackOff(failures, now + min(longest, first * 2 ** min(failures - 1, 16)))

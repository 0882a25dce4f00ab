"""Who may open a session, and whether there is room for one. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from toolbox_dtma.link.broker import Refused
from toolbox_dtma.link.messages import GrantPolicy
from toolbox_dtma.wire import Sessions

RETRY_SECONDS = 5.0
"""When a client may try again where that can help."""
STANDING = Sessions(max_sessions=256, idle_seconds=1800.0)
"""Of a server of the SSE transport, whose sessions share a container: what they take is bounded by its limits."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no session, in words for the client."""

    why: Refused
    message: str
    retry_seconds: float | None = None


UNKNOWN = Refusal(Refused.UNKNOWN, "There is no such server for this connection.")
STOPPED = Refusal(Refused.STOPPED, "The server is not running, or about to be.", RETRY_SECONDS)
FAILED = Refusal(Refused.FAILED, "The server's process could not be started.", RETRY_SECONDS)


def full(max_sessions: int) -> Refusal:
    """As many as may be are open."""
    return Refusal(Refused.FULL, f"All {max_sessions} sessions of this server are in use.", RETRY_SECONDS)


def allowed_until(grant: GrantPolicy | None, instance: str, now: datetime) -> datetime | None:
    """Until when a connection may use an instance; None if it may not, `datetime.max` for ever.

    It may as long as one of its credentials is good: without any, the gateway lets nobody in for it.
    """
    if grant is None or grant.instance != instance:
        return None
    forever = datetime.max.replace(tzinfo=now.tzinfo)
    ends = max((credential.not_after or forever for credential in grant.credentials), default=now)
    end = min(ends, grant.expires_at or forever)
    return end if end > now else None


def admit(*, allowed: bool, deployed: bool, open_sessions: int, max_sessions: int) -> Refusal | None:
    """Whether a connection gets a session. Who has no right is told nothing else."""
    if not allowed:
        return UNKNOWN
    if not deployed:
        return STOPPED
    if open_sessions >= max_sessions:
        return full(max_sessions)
    return None

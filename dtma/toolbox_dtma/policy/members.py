"""Which worker processes must have acknowledged a revision before it is in force. Pure: time is passed in.

A process is a member from its first connection until it is proven dead, or its socket has been lost for longer than
it may serve what it knows. Members of the run before a restart of DTMA count as lost at the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from toolbox_dtma.policy.process import ProcessId


@dataclass(slots=True)
class Member:
    """One worker process. Times are monotonic seconds."""

    process: ProcessId
    connected: bool
    lost_at: float
    """When its socket was lost; meaningful while not connected."""
    acked: int = 0
    """Highest revision acknowledged on its present connection."""
    floor: int = 0
    """For a process that never had policy before: the revision of its first snapshot. Until then it refuses all."""
    pings: int = 0
    """Pings sent since it was last heard of."""


class Members:
    """The set, and what it has acknowledged."""

    def __init__(self, previous: Iterable[ProcessId], *, now: float, lost_seconds: float):
        """`lost_seconds`: how long a worker without a socket serves its last snapshot."""
        self._lost_seconds = lost_seconds
        self._members = {process: Member(process, connected=False, lost_at=now) for process in previous}

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    @property
    def processes(self) -> tuple[ProcessId, ...]:
        """Every member's process."""
        return tuple(self._members)

    @property
    def lost_ones(self) -> tuple[Member, ...]:
        """Members without a socket."""
        return tuple(member for member in self._members.values() if not member.connected)

    @property
    def connected(self) -> tuple[Member, ...]:
        """Members with a socket."""
        return tuple(member for member in self._members.values() if member.connected)

    def joined(self, process: ProcessId, revision: int, now: float) -> Member:
        """A process connected and is sent the snapshot of `revision`.

        Whatever it acknowledged on an older connection counts no more.
        """
        floor = 0 if process in self._members else revision
        member = Member(process, connected=True, lost_at=now, floor=floor)
        self._members[process] = member
        return member

    def lost(self, member: Member, now: float) -> None:
        """This member's connection ended; a newer one of the same process is not affected."""
        member.connected = False
        member.lost_at = now

    def heard(self, member: Member, *, acked: int | None = None) -> None:
        """A frame came from this member."""
        member.pings = 0
        if acked is not None:
            member.acked = max(member.acked, acked)

    def drop(self, member: Member) -> bool:
        """Take a process out that is proven dead. Whether it was still the member in question."""
        if self._members.get(member.process) is member:
            del self._members[member.process]
            return True
        return False

    def drop_expired(self, now: float) -> tuple[Member, ...]:
        """Take out those whose socket was lost so long ago that they refuse everything by now."""
        expired = tuple(m for m in self._members.values() if not m.connected and now - m.lost_at >= self._lost_seconds)
        for member in expired:
            del self._members[member.process]
        return expired

    def behind(self, revision: int) -> tuple[Member, ...]:
        """Members that may still act on something older than `revision`."""
        return tuple(member for member in self._members.values() if max(member.acked, member.floor) < revision)

    def in_force(self, revision: int, *, somewhere: bool) -> bool:
        """Whether nobody acts on anything older; with `somewhere`, also whether anybody acts on it at all."""
        obeyed = any(m.connected and m.acked >= revision for m in self._members.values())
        return not self.behind(revision) and (obeyed or not somewhere)

    def why_pending(self, revision: int) -> str:
        """Who keeps `revision` from being in force."""
        behind = self.behind(revision)
        if not behind:
            return "no gateway worker is connected"
        lost = sum(not member.connected for member in behind)
        return (
            f"{len(behind) - lost} gateway workers have not acknowledged yet, {lost} without a connection may still run"
        )

    def owing(self, revision: int) -> bool:
        """Whether any connected member has yet to acknowledge `revision`, or a lost one may act on older policy."""
        return bool(self.behind(revision) or self.overdue(revision))

    def overdue(self, revision: int) -> tuple[Member, ...]:
        """Connected members that have yet to acknowledge `revision`."""
        return tuple(m for m in self._members.values() if m.connected and m.acked < revision)

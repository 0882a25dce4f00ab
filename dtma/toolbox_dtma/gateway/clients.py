"""How many connections each source has to this worker, and who was turned away. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from toolbox_dtma.gateway.throttle import source_of
from toolbox_dtma.link.messages import Cut


@dataclass(frozen=True, slots=True)
class Share:
    """How many connections a worker may hold."""

    connections: int
    per_source: int


class Clients:
    """Counts from accept to the end of a connection."""

    def __init__(self, share: Share):
        self._share = share
        self._sources: Counter[str] = Counter()
        self._cut: Counter[Cut] = Counter()
        self.connections = 0

    def enter(self, address: str) -> str | None:
        """Count a new connection; the source to leave with, None if it is refused (and counted as cut)."""
        if self.connections >= self._share.connections:
            self.cut(Cut.TOTAL)
            return None
        source = source_of(address)
        if self._sources[source] >= self._share.per_source:
            self.cut(Cut.SOURCE)
            return None
        self._sources[source] += 1
        self.connections += 1
        return source

    def leave(self, source: str) -> None:
        """A connection that entered has ended."""
        self.connections -= 1
        if self._sources[source] > 1:
            self._sources[source] -= 1
        else:
            # No table of every address that ever came.
            del self._sources[source]

    def cut(self, why: Cut) -> None:
        """Count a client that was turned away."""
        self._cut[why] += 1

    def take_cuts(self) -> dict[Cut, int]:
        """How many were cut since this was last asked, by reason."""
        cuts = dict(self._cut)
        self._cut.clear()
        return cuts

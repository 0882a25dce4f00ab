"""Memory that outlives workers: what all of them count in, and what each of them has yet to tell DTMA."""

from __future__ import annotations

from collections.abc import Iterable

from toolbox_dtma.gateway.backlog import make_memory
from toolbox_dtma.gateway.counts import SharedMemory, forget_running


class Memories:
    """What the supervisor holds for its workers, by descriptor. Two processes never share a memory for call records."""

    def __init__(self, counts: SharedMemory, left: Iterable[int] = ()):
        """Take over `counts`, and memories for call records whose workers have ended. Raises `OSError`."""
        self.counts = counts
        self._words = counts.map()
        self._left = list(left)

    @property
    def left(self) -> tuple[int, ...]:
        """Memories for call records that nobody writes now."""
        return tuple(self._left)

    def take(self) -> int:
        """A memory for the call records of a worker that starts, with what another left behind. Raises `OSError`."""
        return self._left.pop(0) if self._left else make_memory()

    def dead(self, place: int, calls: int) -> None:
        """The worker in this place has ended: so has whatever it had running at servers, with its connections."""
        forget_running(self._words, place)
        self._left.append(calls)

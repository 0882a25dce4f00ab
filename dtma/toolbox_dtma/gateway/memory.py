"""Memory of the workers that outlives them: in which they count together, and what they have recorded of calls."""

from __future__ import annotations

import os

from toolbox_dtma.gateway.backlog import make_memory
from toolbox_dtma.gateway.counts import SharedMemory, forget_running


class WorkersMemory:
    """The supervisor's end. Each process has a place, which is its column, and a memory file for call records."""

    def __init__(self, counts: SharedMemory, left: list[int]):
        """`left`: descriptors of the records of processes that ended. Raises `OSError`."""
        self.counts = counts
        self.left = left
        self._words = counts.map()

    @classmethod
    def make(cls, places: int) -> WorkersMemory:
        """New memory. Raises `OSError`."""
        return cls(SharedMemory.make(places), [])

    @classmethod
    def taken(cls, memory: int, fence: int, left: list[int], places: int) -> WorkersMemory:
        """What another version of this process made, if it is of the same form; else new counts. Raises `OSError`."""
        held = SharedMemory(memory, fence, places)
        if held.is_complete():
            return cls(held, left)
        for each in held.descriptors:
            os.close(each)
        return cls(SharedMemory.make(places), left)

    def records(self) -> int:
        """The memory file of a process that is about to start: an ended one's, whose records it then hands over."""
        return self.left.pop(0) if self.left else make_memory()

    def ended(self, place: int, records: int) -> None:
        """A process was waited for: whatever it had running at servers ended with its connections to them."""
        forget_running(self._words, place)
        self.left.append(records)

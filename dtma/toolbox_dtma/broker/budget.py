"""What all sessions together may hold in memory, so that one that writes without end does not end the others. Pure."""

from __future__ import annotations

MAX_HELD_BYTES = 256 * 1024 * 1024


class Budget:
    """Bytes that wait: lines without an end, messages nobody has taken yet, bodies that a process does not take."""

    def __init__(self, most: int = MAX_HELD_BYTES) -> None:
        self._most = most
        self.held = 0
        self.sessions = 0

    def resize(self, before: int, after: int) -> None:
        """What somebody holds has changed."""
        self.held += after - before

    def has_room(self, more: int) -> bool:
        """Whether so many bytes fit."""
        return self.held + more <= self._most

    def is_excessive(self, holds: int) -> bool:
        """Whether there is too much, and a session that holds this has more than its part of it.

        If there is too much, at least one session has.
        """
        return self.held > self._most and holds * max(self.sessions, 1) > self._most

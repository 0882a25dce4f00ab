"""Counts that all workers of a gateway share: what runs, and what was let in during the last minute (design §6).

One column of shared memory for each worker, which alone writes it; everybody reads all of them. To let something in, a
worker first adds it to its own column, then passes the fence, then sums up all columns, and takes it back if the sum
is too high. Of two workers that do so at once, the one that passes the fence later sees what the other added, so the
sum of what was let in never exceeds the limit. No worker ever waits for another: a stopped one holds up nobody.

The fence is a write to an eventfd that all workers share. The kernel takes the same short lock for each such write, so
that writes to memory before one are seen after every later one (Linux, `tools/memory-model`: a lock's release and its
next acquire); it never waits, and holds nothing when it returns.

Time is CLOCK_MONOTONIC, the same for all processes of a machine. What is let in is counted in buckets of one second.
The window is the present bucket and the 60 before it. The last 60 seconds never reach further back, so that in no 60
seconds more than the limit is let in; whatever fits into the limit together with the last 61 seconds is let in.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 60
"""Seconds."""
_RING = 64
"""Buckets kept. Those beyond the window are what a worker may be behind the others while it counts."""
_SLACK = _RING - WINDOW - 1
_OPEN = _SLACK + 1
"""Seconds before the present one into which some worker may still count."""

ROWS = 8192
"""Connections with limits that a worker can count at once: those with a call that runs, or with one in the window."""
PROBES = 64
"""Places where a connection's row may be, from the one its tag names on."""
_ROW_WORDS = 1 + _RING
_COLUMN_WORDS = ROWS * (1 + _ROW_WORDS)
_WORD_BYTES = 8

_NEVER, _REUSED, _FIRST_TAG = 0, 1, 2
_STAMP = 32
"""Bits of a bucket's count, below the second it belongs to."""
_COUNT = (1 << _STAMP) - 1
_ATTEMPTS = 3

SOON = 1.0
"""Seconds after which somebody who found everything busy may look again."""

Fence = Callable[[], None]


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """File descriptors that workers inherit."""

    memory: int
    fence: int
    columns: int

    @classmethod
    def make(cls, columns: int) -> SharedMemory:
        """Memory of zeros, of which only what is used takes room. Raises `OSError`."""
        memory = os.memfd_create("gateway-counts")
        os.ftruncate(memory, columns * _COLUMN_WORDS * _WORD_BYTES)
        return cls(memory, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), columns)

    def is_complete(self) -> bool:
        """Whether the memory is as large as these columns are; another version may have laid it out differently."""
        return os.fstat(self.memory).st_size == self.columns * _COLUMN_WORDS * _WORD_BYTES

    @property
    def descriptors(self) -> tuple[int, int]:
        """What a worker has to inherit."""
        return self.memory, self.fence

    def map(self) -> memoryview:
        """The words. Each is read and written as a whole, since it is aligned. Raises `OSError`."""
        return memoryview(mmap.mmap(self.memory, self.columns * _COLUMN_WORDS * _WORD_BYTES)).cast("Q")

    def pass_fence(self) -> None:
        """See the module. The sum stays zero, so this never blocks."""
        os.eventfd_write(self.fence, 0)


def forget_running(words: memoryview, column: int) -> None:
    """Take back what a dead worker had running. What it let in stays counted until the minute is over.

    Only for a column whose worker is proven dead, before its successor starts.
    """
    base = column * _COLUMN_WORDS
    for row in range(ROWS):
        if words[base + row] != _NEVER:
            words[base + ROWS + row * _ROW_WORDS] = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be let in, and under which limits."""

    running: int
    """Requests that will be in flight."""
    arriving: int
    """Messages to be forwarded."""
    max_running: int | None
    max_per_minute: int | None


class TooMany(Exception):
    """A limit is reached. `wait`: seconds after which it makes sense to come again; None if it never does."""

    def __init__(self, wait: float | None):
        super().__init__(wait)
        self.wait = wait


class TooManyRunning(TooMany):
    """As many as may run do. When one of them ends is not known: the wait is a guess."""


class TooManyThisMinute(TooMany):
    """As many as may be let in within the window were. After the wait it fits, if nothing else is let in."""


class NoRoom(Exception):
    """Every place where the connection could be counted is taken."""


@dataclass(slots=True)
class _Known:
    """What is remembered of a connection between two requests."""

    tag: int
    crowded: bool = False
    """Whether the last request was refused: then it is looked first, so that refused ones disturb nobody."""
    settled_at: int = -1
    settled: int = 0
    """What was let in within the window seen from second `settled_at`, without its last `_OPEN` seconds."""


class Counts:
    """One worker's end."""

    def __init__(self, words: memoryview, column: int, *, fence: Fence, monotonic: Callable[[], float]):
        self._words = words
        self._columns = tuple(range(0, len(words), _COLUMN_WORDS))
        self._base = column * _COLUMN_WORDS
        self._fence = fence
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}

    def enter(self, connection: str, wanted: Wanted) -> Callable[[], None]:
        """Let something in. Returns what takes it out again once it runs no more; calling that again does nothing.

        Raises `TooMany`, `NoRoom`.
        """
        known = self._knowing(connection)
        collisions = 0
        while True:
            now = self._monotonic()
            second = int(now)
            if known.crowded:
                self._refuse_if_full(known.tag, wanted, now)
            at = self._row(known.tag, second)
            bucket = at + 1 + second % _RING
            before = self._words[bucket]
            self._words[bucket] = (before if before >> _STAMP == second else second << _STAMP) + wanted.arriving
            self._words[at] += wanted.running
            self._fence()
            exceeded = self._exceeded(known, wanted, second)
            # A process that was stopped meanwhile may have missed buckets that others used again.
            late = int(self._monotonic()) - second > _SLACK
            if exceeded is None and not late:
                known.crowded = False
                return self._leave(at, wanted.running)
            self._words[bucket] -= wanted.arriving
            self._words[at] -= wanted.running
            if exceeded is not None:
                # Full; or it only seems so, since others added at the same moment what they take back.
                known.crowded = True
                collisions += 1
                if collisions == _ATTEMPTS:
                    self._refuse_if_full(known.tag, wanted, self._monotonic())
                    raise exceeded(SOON)

    def _knowing(self, connection: str) -> _Known:
        known = self._known.get(connection)
        if known is None:
            if len(self._known) >= ROWS:
                self._known.clear()
            known = self._known[connection] = _Known(_tag(connection))
        return known

    def _leave(self, at: int, running: int) -> Callable[[], None]:
        left = running

        def leave() -> None:
            nonlocal left
            self._words[at] -= left
            left = 0

        return leave

    def _exceeded(self, known: _Known, wanted: Wanted, second: int) -> type[TooMany] | None:
        """The limit that all columns together exceed, what is wanted included. Asked after the fence."""
        tag = known.tag
        rates = wanted.max_per_minute is not None
        if rates and known.settled_at != second:
            # Whoever counts into these seconds by now finds that it is late, and takes it back.
            oldest, first_open = (second - WINDOW) << _STAMP, (second - _OPEN) << _STAMP
            known.settled = sum(
                [cell & _COUNT for row in self._rows(tag) for cell in row[1:] if oldest <= cell < first_open]
            )
            known.settled_at = second
        running, arrived = 0, known.settled
        least = (second - _OPEN) << _STAMP
        places = [1 + each % _RING for each in range(second - _OPEN, second + _SLACK + 1)] if rates else ()
        for base in self._columns:
            while (row := self._find(base, tag)) is not None:
                start = base + ROWS + row * _ROW_WORDS
                here = self._words[start]
                cells = [cell for place in places if (cell := self._words[start + place]) >= least]
                if self._words[base + row] == tag:
                    running += here
                    arrived += sum([cell & _COUNT for cell in cells])
                    break
                # It went to another connection meanwhile.
        if wanted.max_running is not None and wanted.running and running > wanted.max_running:
            return TooManyRunning
        if wanted.max_per_minute is not None and arrived > wanted.max_per_minute:
            return TooManyThisMinute
        return None

    def _refuse_if_full(self, tag: int, wanted: Wanted, now: float) -> None:
        """Look without adding anything. Raises `TooMany`."""
        rows = self._rows(tag)
        if wanted.max_running is not None and wanted.running:
            if sum([row[0] for row in rows]) + wanted.running > wanted.max_running:
                raise TooManyRunning(SOON if wanted.running <= wanted.max_running else None)
        if wanted.max_per_minute is None:
            return
        oldest = (int(now) - WINDOW) << _STAMP
        counted = sorted(cell for row in rows for cell in row[1:] if cell >= oldest)
        excess = sum(cell & _COUNT for cell in counted) + wanted.arriving - wanted.max_per_minute
        if excess > 0:
            raise TooManyThisMinute(_wait(counted, excess, now))

    def _rows(self, tag: int) -> list[list[int]]:
        """A connection's row of every column that has one."""
        return [row for base in self._columns if (row := self._read(base, tag)) is not None]

    def _read(self, base: int, tag: int) -> list[int] | None:
        while (row := self._find(base, tag)) is not None:
            start = base + ROWS + row * _ROW_WORDS
            cells = self._words[start : start + _ROW_WORDS].tolist()
            if self._words[base + row] == tag:
                return cells
            # It went to another connection meanwhile.
        return None

    def _find(self, base: int, tag: int) -> int | None:
        for step in range(PROBES):
            row = (tag + step) % ROWS
            found = self._words[base + row]
            if found == tag:
                return row
            if found == _NEVER:
                return None
        return None

    def _row(self, tag: int, second: int) -> int:
        """Where the own row begins, made if there is none. Raises `NoRoom`."""
        row = self._find(self._base, tag)
        if row is None:
            row = self._free(tag, second)
            start = self._base + ROWS + row * _ROW_WORDS
            # Nobody may take the old counts for the new connection's, or the other way round.
            self._words[self._base + row] = _REUSED
            self._fence()
            for word in range(start, start + _ROW_WORDS):
                self._words[word] = 0
            self._fence()
            self._words[self._base + row] = tag
        return self._base + ROWS + row * _ROW_WORDS

    def _free(self, tag: int, second: int) -> int:
        for step in range(PROBES):
            row = (tag + step) % ROWS
            if self._words[self._base + row] in (_NEVER, _REUSED) or self._is_idle(row, second):
                return row
        raise NoRoom

    def _is_idle(self, row: int, second: int) -> bool:
        start = self._base + ROWS + row * _ROW_WORDS
        running, *cells = self._words[start : start + _ROW_WORDS].tolist()
        return running == 0 and max(cells) >> _STAMP < second - WINDOW - _SLACK


def _tag(connection: str) -> int:
    digest = hashlib.blake2b(connection.encode(), digest_size=8).digest()
    return max(int.from_bytes(digest, "big"), _FIRST_TAG)


def _wait(counted: list[int], excess: int, now: float) -> float | None:
    """Seconds until `excess` of what is counted, oldest first, has left the window."""
    for cell in counted:
        excess -= cell & _COUNT
        if excess <= 0:
            return (cell >> _STAMP) + WINDOW + 1 - now
    return None

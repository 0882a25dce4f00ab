"""Call records that DTMA has not taken yet, in memory that outlives the worker which wrote them.

The supervisor makes a memory file for each worker, and hands that of one that ended to the next one that starts: what a
killed worker recorded is not lost. One process writes at a time, and each step is one aligned store of eight bytes, so
a kill at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

BACKLOG_BYTES = 8 * 1024 * 1024
"""Size of a worker's memory file: some 25,000 records of ordinary size."""
MAX_ENTRY_BYTES = 4096
BATCH_ENTRIES = 256
BATCH_BYTES = 512 * 1024

_HEAD_BYTES = 256
_MAGIC = 0x314C4C41434254  # "TBCALL1"
_LENGTH = struct.Struct("<I")

Checks = Callable[[bytes], bool]


class _Word(IntEnum):
    MAGIC = 0
    STREAM_HIGH = 1
    STREAM_LOW = 2
    FIRST = 3
    """Positions count bytes since the beginning of the stream; the place of one is its rest by the size."""
    SENT = 4
    """End of the batch that is under way; not above FIRST if none is."""
    END = 5
    BATCH = 6
    RUNNING = 7
    LOST = 8
    LOST_SENT = 9
    DROPPED = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """What is handed over at once. The same number always stands for the same entries."""

    stream: str
    number: int
    entries: tuple[bytes, ...]
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    """Records that found no room, by connection."""
    lost: int = 0
    """Records of which not even the connection is known: of calls that ran when a worker was killed."""


_COUNTERS = slice(_Word.FIRST, max(_Word) + 1)
_LARGEST = 1 << 62
"""No honest counter comes near: one above would overflow."""


class Backlog:
    """A ring of encoded records with its bookkeeping, in one shared mapping."""

    def __init__(self, memory: mmap.mmap, *, is_valid: Checks):
        """Take over what a predecessor left; what is not `is_valid`, or does not hang together, counts as lost."""
        view = memoryview(memory)
        self._words = view[:_HEAD_BYTES].cast("Q")
        self._ring = view[_HEAD_BYTES:]
        self._size = len(self._ring)
        self._dropped: Counter[str] = Counter()
        self._batch: Batch | None = None
        self._adopt(is_valid)

    def _adopt(self, is_valid: Checks) -> None:
        words = self._words
        if words[_Word.MAGIC] != _MAGIC or not self._hangs_together(is_valid):
            damaged = words[_Word.MAGIC] == _MAGIC
            for word in _Word:
                words[word] = 0
            words[_Word.STREAM_HIGH] = int.from_bytes(os.urandom(8))
            words[_Word.STREAM_LOW] = int.from_bytes(os.urandom(8))
            words[_Word.LOST] = int(damaged)
            words[_Word.MAGIC] = _MAGIC
        words[_Word.LOST] += words[_Word.RUNNING] + words[_Word.DROPPED]
        words[_Word.RUNNING] = words[_Word.DROPPED] = 0

    def _hangs_together(self, is_valid: Checks) -> bool:
        first, sent, end = self._words[_Word.FIRST], self._words[_Word.SENT], self._words[_Word.END]
        if not first <= end <= first + self._size or sent > end or max(self._words[_COUNTERS]) > _LARGEST:
            return False
        position, borders = first, {first}
        while position < end:
            entry = self._entry(position)
            if entry is None or not is_valid(entry):
                return False
            position += _LENGTH.size + len(entry)
            borders.add(position)
        return position == end and (sent <= first or sent in borders)

    @property
    def stream(self) -> str:
        """The name of this stream of batches, 32 hexadecimal digits; no other worker knows it."""
        return f"{self._words[_Word.STREAM_HIGH]:016x}{self._words[_Word.STREAM_LOW]:016x}"

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are not acknowledged."""
        return self._words[_Word.END] - self._words[_Word.FIRST]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to hand over and nothing under way."""
        return not (self._batch or self.waiting_bytes or self._dropped or self._words[_Word.LOST])

    def begun(self, number: int) -> None:
        """So many calls have begun: should this process be killed, they are lost unless they ended before."""
        self._words[_Word.RUNNING] += number

    def ended(self, number: int) -> None:
        """So many of them ended, and are recorded."""
        self._words[_Word.RUNNING] -= number

    def append(self, connection: str, entry: bytes) -> None:
        """Keep a record of a connection; without room for it, count it."""
        words = self._words
        end = words[_Word.END]
        length = _LENGTH.size + len(entry)
        if len(entry) > MAX_ENTRY_BYTES or end + length - words[_Word.FIRST] > self._size:
            self._dropped[connection] += 1
            words[_Word.DROPPED] += 1
            return
        self._put(end, _LENGTH.pack(len(entry)) + entry)
        words[_Word.END] = end + length

    def batch(self, *, anyway: bool) -> Batch | None:
        """The batch under way, else the next one; None if there is nothing to tell, unless `anyway`."""
        if self._batch is None and (anyway or not self.is_empty):
            self._batch = self._next()
        return self._batch

    def _next(self) -> Batch:
        words = self._words
        position = words[_Word.FIRST]
        # One that a predecessor sent goes again as it was: DTMA may have taken it.
        repeated = words[_Word.SENT] > position
        stop = words[_Word.SENT] if repeated else words[_Word.END]
        entries: list[bytes] = []
        size = 0
        while position < stop and (repeated or len(entries) < BATCH_ENTRIES):
            entry = self._entry(position)
            assert entry is not None
            size += len(entry)
            if size > BATCH_BYTES and not repeated:
                break
            entries.append(entry)
            position += _LENGTH.size + len(entry)
        if not repeated:
            words[_Word.LOST_SENT] = words[_Word.LOST]
            words[_Word.BATCH] += 1
            words[_Word.SENT] = position
        dropped = {} if repeated else dict(self._dropped.most_common(BATCH_ENTRIES))
        return Batch(self.stream, words[_Word.BATCH], tuple(entries), dropped, words[_Word.LOST_SENT])

    def acknowledged(self, stream: str, number: int) -> bool:
        """DTMA has taken a batch. Whether it was the one under way."""
        batch = self._batch
        if batch is None or (stream, number) != (batch.stream, batch.number):
            return False
        words = self._words
        words[_Word.FIRST] = max(words[_Word.SENT], words[_Word.FIRST])
        words[_Word.LOST] -= batch.lost
        words[_Word.LOST_SENT] = 0
        for connection, count in batch.dropped.items():
            self._dropped[connection] -= count
            words[_Word.DROPPED] -= count
            if not self._dropped[connection]:
                del self._dropped[connection]
        self._batch = None
        return True

    def _put(self, position: int, data: bytes) -> None:
        start = position % self._size
        room = self._size - start
        self._ring[start : start + min(len(data), room)] = data[:room]
        if len(data) > room:
            self._ring[: len(data) - room] = data[room:]

    def _get(self, position: int, length: int) -> bytes:
        start = position % self._size
        piece = bytes(self._ring[start : start + length])
        return piece if len(piece) == length else piece + bytes(self._ring[: length - len(piece)])

    def _entry(self, position: int) -> bytes | None:
        """The entry at a position; None if there cannot be one."""
        (length,) = _LENGTH.unpack(self._get(position, _LENGTH.size))
        return self._get(position + _LENGTH.size, length) if 0 < length <= MAX_ENTRY_BYTES else None


def make_memory() -> int:
    """A descriptor of a fresh memory file for one worker. Raises `OSError`."""
    descriptor = os.memfd_create("toolbox-gateway-calls")
    os.ftruncate(descriptor, _HEAD_BYTES + BACKLOG_BYTES)
    return descriptor


def map_memory(descriptor: int | None) -> mmap.mmap:
    """The mapping of such a descriptor, or one of this process alone. Raises `OSError`, `ValueError`."""
    if descriptor is None:
        return mmap.mmap(-1, _HEAD_BYTES + BACKLOG_BYTES)
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size)

"""Call records on disk until their owners have them: bounded, append-only, and never a reason not to start.

Numbers have no gaps, so what a damaged file held is counted. A run of DTMA only appends to files that it began
itself: where a crash cut a line short, the line is left out, and nothing is repaired. `append` returns once its lines
are on disk (fdatasync, once for all that is appended together); that something was acknowledged is not waited for,
since forgetting it only repeats records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from toolbox_dtma.state.files import ensure_folder, sync_folder
from toolbox_dtma.state.spool_files import (
    Account,
    Head,
    Line,
    Marks,
    Records,
    Segment,
    encode,
    encode_records,
    lines_of,
)

log = structlog.get_logger("toolbox_dtma.calls")

MAX_STREAMS = 128
"""Streams whose last batch is remembered; more than workers that can run."""
_CURSOR = re.compile(r"(\d{1,18}):(\d{1,18})", re.ASCII)
_SUFFIX = ".calls"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A batch of a worker."""

    stream: str
    batch: int
    records: tuple[tuple[str, bytes], ...]
    """(owner, record as JSON)."""
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    """By owner: how many were lost on the way."""


class Spool:
    """One folder of segments. Blocking, and for one thread at a time; `accounts` may be looked at by any."""

    def __init__(self, folder: Path, *, boot_id: int, max_bytes: int, segment_bytes: int):
        """`boot_id` differs from that of every earlier run: cursors of those are not known any more."""
        self._folder = folder
        self._boot_id = boot_id
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []
        self._next = 0
        self._file: int | None = None
        self._unwritten = False
        """Whether an account changed that no line tells of."""
        self._failing = False
        self._overflowing = False
        self._streams: dict[str, int] = {}
        self.accounts: dict[str, Account] = {}

    def open(self) -> None:
        """Read what earlier runs left. What cannot be read is passed over: nothing here keeps a host from starting."""
        try:
            ensure_folder(self._folder)
            paths = sorted(path for path in self._folder.iterdir() if path.suffix == _SUFFIX and path.stem.isdecimal())
        except OSError as error:
            log.warning("call records cannot be read", error=error.strerror)
            return
        for path in paths:
            self._next = max(self._next, int(path.stem) + 1)
            segment = Segment(path)
            try:
                segment.size = path.stat().st_size
                damaged = sum(not self._replay(line, segment) for line in lines_of(path))
            except OSError as error:
                log.warning("a file of call records cannot be read", file=path.name, error=error.strerror)
                continue
            if damaged:
                log.warning("damaged lines of call records left out", file=path.name, lines=damaged)
            self._segments.append(segment)
        self._count_missing()
        self._prune()

    def _replay(self, line: Line | None, segment: Segment) -> bool:
        """Take a line into account. Whether it was one."""
        match line:
            case Head():
                for owner, mark in line.accounts.items():
                    self._account(owner).learn(mark)
                self._streams = dict(line.streams)
            case Marks():
                for owner, mark in line.accounts.items():
                    self._account(owner).learn(mark)
            case Records():
                for owner, number, _ in line.records:
                    account = self._account(owner)
                    account.last = max(account.last, number)
                    segment.add(owner, number)
                self._saw(line.stream, line.batch)
            case None:
                return False
        return True

    def _count_missing(self) -> None:
        """Records that were written once and are in no file any more: damaged, or taken away by hand."""
        for owner, account in self.accounts.items():
            present = sum(segment.count_after(owner, account.gone) for segment in self._segments)
            missing = max(0, account.last - account.gone - present)
            if missing > account.missing:
                self._drop(account, missing - account.missing)
            account.missing = missing

    def _account(self, owner: str) -> Account:
        return self.accounts.setdefault(owner, Account())

    def _saw(self, stream: str, batch: int) -> None:
        # Taken out first, so that the dict stays ordered by use.
        self._streams[stream] = max(batch, self._streams.pop(stream, -1))
        while len(self._streams) > MAX_STREAMS:
            del self._streams[next(iter(self._streams))]

    # ------------------------------------------------------------------ append
    def append(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Keep batches, or count their records as dropped if there is no room on the disk. Never raises `OSError`.

        Returns those that did not come before.
        """
        wanted: list[Delivery] = []
        newest = dict(self._streams)
        for each in deliveries:
            if each.batch > newest.get(each.stream, -1):
                newest[each.stream] = each.batch
                wanted.append(each)
        for each in wanted:
            for owner, count in each.dropped.items():
                self._drop(self._account(owner), count)
        written = self._write([each for each in wanted if each.records or each.dropped])
        for each in wanted:
            self._saw(each.stream, each.batch)
            for owner, _ in each.records:
                account = self._account(owner)
                if written:
                    account.last += 1
                    self._segments[-1].add(owner, account.last)
                else:
                    self._drop(account, 1)
        self._prune()
        return wanted

    def _drop(self, account: Account, count: int) -> None:
        account.dropped += count
        self._unwritten = True

    def _write(self, deliveries: list[Delivery]) -> bool:
        """Append batches durably. Whether that worked; if not, nothing of them is there."""
        if not deliveries:
            return True
        numbers = {owner: account.last for owner, account in self.accounts.items()}
        try:
            if self._file is None or self._segments[-1].size >= self._segment_bytes:
                self._roll()
            self._put([*self._marks(), *(_numbered(each, numbers) for each in deliveries)], durable=True)
        except OSError as error:
            self._note_failure(error)
            return False
        self._unwritten = self._failing = False
        return True

    def _marks(self) -> list[bytes]:
        marks = {owner: account.mark for owner, account in self.accounts.items()}
        return [encode(Marks(accounts=marks))] if self._unwritten else []

    def _put(self, lines: list[bytes], *, durable: bool) -> None:
        """Append to the open file. Raises `OSError`; then it is closed, without the lines."""
        assert self._file is not None
        segment = self._segments[-1]
        data = b"".join(lines)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            if durable:
                os.fdatasync(self._file)
        except OSError:
            self._cut(segment)
            raise
        segment.size += len(data)

    def _cut(self, segment: Segment) -> None:
        assert self._file is not None
        try:
            os.ftruncate(self._file, segment.size)
        except OSError as error:
            # The next run may then deliver some of what this one counted as dropped.
            log.warning("a file of call records could not be cut", file=segment.path.name, error=error.strerror)
        finally:
            self.close()

    def _roll(self) -> None:
        """Begin a file. Raises `OSError`; then there is none that could be appended to."""
        self.close()
        path = self._folder / f"{self._next:012d}{_SUFFIX}"
        self._next += 1
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._segments.append(Segment(path))
        marks = {owner: account.mark for owner, account in self.accounts.items()}
        try:
            self._put([encode(Head(accounts=marks, streams=self._streams))], durable=True)
            sync_folder(self._folder)
        except OSError:
            self.close()
            self._segments.pop()
            path.unlink(missing_ok=True)
            raise
        self._unwritten = False

    def _note_failure(self, error: OSError) -> None:
        if not self._failing:
            log.warning("call records cannot be written; they are counted as dropped", error=error.strerror)
        self._failing = True

    # ---------------------------------------------------------------- delivery
    def _position(self, owner: str, cursor: str | None) -> int | None:
        """The number that a cursor stands for; None if it is not of this run."""
        match = _CURSOR.fullmatch(cursor or "")
        account = self.accounts.get(owner)
        if match is None or account is None or int(match[1]) != self._boot_id:
            return None
        number = int(match[2])
        return number if number <= account.last else None

    def acknowledge(self, owner: str, cursor: str | None) -> None:
        """The owner has everything up to a cursor; one that is not known acknowledges nothing."""
        position = self._position(owner, cursor)
        if position is None or position <= self.accounts[owner].gone:
            return
        self.accounts[owner].end(position)
        self._unwritten = True
        self._overflowing = False
        self._prune()
        if self._unwritten and self._file is not None:
            try:
                self._put(self._marks(), durable=False)
                self._unwritten = False
            except OSError as error:
                self._note_failure(error)

    def read(self, owner: str, cursor: str | None, limit: int) -> tuple[list[dict[str, Any]], str]:
        """Records of an owner after a cursor, and the cursor after them.

        An older cursor repeats what is still there; one that is not known begins with all that is held.
        """
        account = self.accounts.get(owner, Account())
        known = self._position(owner, cursor)
        position = account.gone if known is None else known
        found: list[tuple[int, dict[str, Any]]] = []
        for segment in self._segments:
            if len(found) >= limit or segment.last(owner) <= position:
                continue
            try:
                found += segment.records(owner, position, limit - len(found))
            except OSError as error:
                # Nothing behind it either, or the next cursor would say that this one was delivered.
                log.warning("a file of call records cannot be read", file=segment.path.name, error=error.strerror)
                break
        after = found[-1][0] if found else position
        return [record for _, record in found], f"{self._boot_id}:{after}"

    # ------------------------------------------------------------------- bounds
    def _prune(self) -> None:
        """Remove files of which nobody needs anything, and the oldest ones above the limit."""
        while len(self._segments) > 1 and sum(segment.size for segment in self._segments) > self._max_bytes:
            oldest = self._segments[0]
            for owner in oldest.spans:
                account = self._account(owner)
                self._drop(account, oldest.count_after(owner, account.gone))
                account.end(oldest.last(owner))
            if not self._overflowing:
                log.warning("call records are dropped: they are not fetched in time")
            self._overflowing = True
            self._remove(oldest)
        if self._segments and self._segments[-1].spans and all(map(self._is_over, self._segments)):
            # A successor must be on disk before the last one goes: the numbers are told nowhere else.
            try:
                self._roll()
            except OSError as error:
                self._note_failure(error)
        for segment in tuple(filter(self._is_over, self._segments[:-1])):
            self._remove(segment)

    def _is_over(self, segment: Segment) -> bool:
        return all(segment.last(owner) <= self._account(owner).gone for owner in segment.spans)

    def _remove(self, segment: Segment) -> None:
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a file of call records cannot be removed", file=segment.path.name, error=error.strerror)
        self._segments.remove(segment)

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _numbered(delivery: Delivery, numbers: dict[str, int]) -> bytes:
    """A line of records, which counts them up."""
    records: list[tuple[str, int, bytes]] = []
    for owner, record in delivery.records:
        numbers[owner] = numbers.get(owner, 0) + 1
        records.append((owner, numbers[owner], record))
    return encode_records(delivery.stream, delivery.batch, records)

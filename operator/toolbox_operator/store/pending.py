"""What waits to be written: the newest record of each object, bounded by the number of objects.

No I/O in here. The writer takes batches, and confirms them once they are committed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from toolbox_operator.store.api import Live
from toolbox_operator.store.records import Kind, Record, merge

SWEPT = "swept"
REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Closing:
    """When and why an object's row was closed."""

    at: datetime
    reason: str


@dataclass(slots=True)
class Entry:
    """One object."""

    record: Record
    direct: bool
    sweeps: int
    """How many sweeps there had been when the object was last seen."""
    closing: Closing | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """An entry as it was when the writer took it."""

    record: Record
    direct: bool
    closing: Closing | None
    version: int


@dataclass(frozen=True, slots=True)
class Event:
    """A row of lifecycle_events."""

    id: str
    at: datetime
    kind: str
    object: str
    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """Close what is open in the database and not among `keep`."""

    number: int
    at: datetime
    keep: dict[Kind, frozenset[str]]


class Pending:
    """Newest record of each object, the events and the sweep that are not written yet."""

    def __init__(self, max_events: int) -> None:
        self._entries: dict[tuple[Kind, str], Entry] = {}
        self._dirty: set[tuple[Kind, str]] = set()
        self._refused: set[tuple[Kind, str]] = set()
        self._names: dict[tuple[Kind, str, str], str] = {}
        self._events: deque[Event] = deque()
        self._max_events = max_events
        self._sweeps = 0
        self._sweep: tuple[int, datetime, Live] | None = None
        self._swept: tuple[int, datetime, Live] | None = None
        """The newest sweep that is written."""
        self.dropped_events = 0

    @property
    def backlog(self) -> int:
        """Rows, events and sweeps that are not written yet."""
        return len(self._dirty) + len(self._events) + (self._sweep is not None)

    @property
    def refused(self) -> int:
        """Rows that PostgreSQL does not take."""
        return len(self._refused)

    def submit(self, records: Iterable[Record], at: datetime) -> None:
        """Parents first, the submitted row itself last."""
        *parents, row = records
        for parent in parents:
            self._offer(parent, direct=False, at=at)
        self._offer(row, direct=True, at=at)

    def close(self, records: Iterable[Record], reason: str, at: datetime) -> None:
        """Close the last of the records; its parents only make foreign keys good."""
        *parents, row = records
        for parent in parents:
            self._offer(parent, direct=False, at=at)
        entry = self._entries.get(row.key)
        if entry is not None and entry.record.uid != row.uid:
            return  # The id belongs to a newer object already.
        if entry is not None and entry.closing is not None and entry.closing.reason != SWEPT:
            return
        self._offer(row, direct=True, at=at)
        self._close(self._entries[row.key], Closing(at, reason))

    def sweep(self, live: Live, at: datetime) -> None:
        """Close what a complete list does not have, here and (later) in the database.

        An object seen since the sweep before may be younger than the list, so it is left for the next one.
        """
        self._sweeps += 1
        ids = {Kind.TOOLBOX: live.toolboxes, Kind.INSTANCE: live.instances, Kind.CONNECTION: live.connections}
        for (kind, id_), entry in list(self._entries.items()):
            if id_ in ids[kind] or entry.sweeps >= self._sweeps - 1:
                continue
            if entry.closing is None:
                self._close(entry, Closing(at, SWEPT))
            elif entry.record.key not in self._dirty:
                self._forget(entry)
        self._sweep = (self._sweeps, at, live)

    def vanished(self, kind: Kind, namespace: str, name: str, at: datetime) -> None:
        """Close what is open under a name: its object went without a word."""
        entry = self._entries.get((kind, self._names.get((kind, namespace, name), "")))
        if entry is not None and entry.closing is None:
            self._close(entry, Closing(at, SWEPT))

    def log(self, event: Event) -> None:
        """Append an event; the oldest goes when there are too many."""
        if len(self._events) >= self._max_events:
            self._events.popleft()
            self.dropped_events += 1
        self._events.append(event)

    def batch(self, limit: int) -> list[Change]:
        """Up to `limit` changes. Parents come in the same batch as their children, or in an earlier one."""
        chosen = (self._entries[key] for key in heapq.nsmallest(limit, self._dirty))
        return [Change(entry.record, entry.direct, entry.closing, entry.version) for entry in chosen]

    def events(self, limit: int) -> list[Event]:
        """The oldest events."""
        return [self._events[i] for i in range(min(limit, len(self._events)))]

    def due_sweep(self) -> Sweep | None:
        """The newest sweep, keeping whatever is known here: its own row says what becomes of it."""
        if self._sweep is None:
            return None
        number, at, live = self._sweep
        keep = {Kind.TOOLBOX: live.toolboxes, Kind.INSTANCE: live.instances, Kind.CONNECTION: live.connections}
        known: dict[Kind, set[str]] = {kind: set() for kind in Kind}
        for kind, id_ in self._entries:
            known[kind].add(id_)
        return Sweep(number, at, {kind: keep[kind] | known[kind] for kind in Kind})

    def confirm(self, changes: Iterable[Change], events: Iterable[Event] = (), sweep: Sweep | None = None) -> None:
        """These are committed."""
        for change in changes:
            entry = self._entries.get(change.record.key)
            if entry is None or entry.version != change.version:
                continue
            # A closed one is kept for a while: should the database be restored to before that, it is closed again.
            self._dirty.discard(change.record.key)
        done = {event.id for event in events}
        while self._events and self._events[0].id in done:
            self._events.popleft()
        if sweep is not None and self._sweep is not None and self._sweep[0] == sweep.number:
            self._swept, self._sweep = self._sweep, None

    def refuse(self, change: Change) -> None:
        """PostgreSQL will never take this record as it is."""
        entry = self._entries.get(change.record.key)
        if entry is not None and entry.version == change.version:
            self._dirty.discard(change.record.key)
            self._refused.add(change.record.key)

    def refuse_events(self, events: Iterable[Event]) -> None:
        """PostgreSQL will never take these events."""
        gone = {event.id for event in events}
        self._events = deque(event for event in self._events if event.id not in gone)
        self.dropped_events += len(gone)

    def retry_refused(self) -> None:
        """Try again what was refused: a parent may be there by now."""
        self._dirty |= self._refused
        self._refused.clear()

    def rewrite(self) -> None:
        """Write everything known again: the database may have lost what it had confirmed.

        That includes closings and the last sweep. An object in that sweep's list that is gone since is known here as
        closed.
        """
        self._dirty = set(self._entries)
        self._refused.clear()
        self._sweep = self._sweep or self._swept

    def _offer(self, record: Record, *, direct: bool, at: datetime) -> None:
        entry = self._entries.get(record.key)
        if entry is None:
            if not direct and self._superseded(record):
                return
            self._entries[record.key] = entry = Entry(record, direct, self._sweeps)
            self._changed(entry)
            self._name(entry, at)
            return
        if entry.closing is not None:
            reborn = record.uid != entry.record.uid or entry.closing.reason == SWEPT
            if not (direct and reborn):
                return
            entry.closing = None
            self._changed(entry)
        merged = merge(entry.record, record, direct=direct)
        if merged != entry.record or (direct and not entry.direct):
            entry.record = merged
            entry.direct = entry.direct or direct
            self._changed(entry)
        if direct:
            entry.sweeps = self._sweeps
            self._name(entry, at)

    def _name(self, entry: Entry, at: datetime) -> None:
        """Another id under the same name: the object was made anew, and the one before is gone."""
        name = (entry.record.kind, entry.record.namespace, entry.record.name)
        before = self._entries.get((entry.record.kind, self._names.get(name, "")))
        if before is not None and before is not entry and before.closing is None:
            self._close(before, Closing(at, REPLACED))
        self._names[name] = entry.record.id

    def _changed(self, entry: Entry) -> None:
        entry.version += 1
        self._dirty.add(entry.record.key)
        self._refused.discard(entry.record.key)

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.record.key]
        self._refused.discard(entry.record.key)
        name = (entry.record.kind, entry.record.namespace, entry.record.name)
        if self._names.get(name) == entry.record.id:
            del self._names[name]

    def _superseded(self, record: Record) -> bool:
        """Whether an object of this name with another id has spoken for itself."""
        holder = self._entries.get((record.kind, self._names.get((record.kind, record.namespace, record.name), "")))
        return holder is not None and holder.direct and holder.closing is None

    def _close(self, entry: Entry, closing: Closing) -> None:
        entry.closing = closing
        self._changed(entry)

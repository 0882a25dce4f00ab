"""What becomes of a row that is already written: pure, total, no I/O.

The caller holds the row's lock, so nothing changes between the reading and the writing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from toolbox_operator.store.pending import SWEPT, Change, Closing
from toolbox_operator.store.records import Record, merge


@dataclass(frozen=True, slots=True)
class Fence:
    """As whom, and when, a transaction writes."""

    cluster_id: str
    epoch: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the database."""

    record: Record
    cluster_id: str
    epoch: int
    closing: Closing | None = None


def decide(stored: Stored | None, change: Change, fence: Fence) -> Stored | None:
    """The row as it should be, or None to leave what is there (or is not) alone."""
    arriving = Stored(change.record, fence.cluster_id, fence.epoch, change.closing)
    if stored is None:
        return arriving if change.record.writable else None
    foreign = stored.cluster_id != fence.cluster_id
    # Epochs of two clusters do not compare: an id that moved with its object belongs to the newcomer.
    if stored.epoch > fence.epoch and not foreign:
        return None
    reborn = foreign or stored.record.uid != change.record.uid
    own_voice = change.direct and change.closing is None
    if reborn and not own_voice:
        return None
    if stored.closing is not None and not reborn and not (own_voice and stored.closing.reason == SWEPT):
        return None
    if reborn:
        spec = {**stored.record.spec, **change.record.spec}
        return replace(arriving, record=replace(change.record, spec=spec))
    return replace(arriving, record=merge(stored.record, change.record, direct=change.direct))


def may_replace(predecessor: Stored, fence: Fence) -> bool:
    """Whether an open row of another id may be closed because its name has passed on."""
    return predecessor.epoch <= fence.epoch

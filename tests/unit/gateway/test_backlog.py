"""The memory of call records that outlives a worker."""

from __future__ import annotations

import json
import mmap
import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolbox_dtma.gateway.accounting import uuid7
from toolbox_dtma.gateway.backlog import BATCH_ENTRIES, Backlog, map_memory
from toolbox_dtma.gateway.reporting import is_entry

SMALL = 256 + 4096


def valid(raw: bytes) -> bool:
    return raw.startswith(b"record")


def small() -> mmap.mmap:
    return mmap.mmap(-1, SMALL)


def take(backlog: Backlog) -> tuple[bytes, ...]:
    batch = backlog.batch(anyway=False)
    if batch is None:
        return ()
    assert backlog.acknowledged(batch.stream, batch.number)
    return batch.entries


def test_records_come_out_in_order_and_once() -> None:
    backlog = Backlog(small(), is_valid=valid)
    for number in range(5):
        backlog.append("c", b"record %d" % number)
    assert take(backlog) == tuple(b"record %d" % number for number in range(5))
    assert backlog.is_empty and take(backlog) == ()


def test_a_batch_stays_the_same_until_it_is_acknowledged() -> None:
    backlog = Backlog(small(), is_valid=valid)
    backlog.append("c", b"record 1")
    first = backlog.batch(anyway=False)
    backlog.append("c", b"record 2")
    assert first is not None and backlog.batch(anyway=False) == first
    assert not backlog.acknowledged(first.stream, first.number + 1)
    assert not backlog.acknowledged("another stream", first.number)
    assert backlog.acknowledged(first.stream, first.number)
    second = backlog.batch(anyway=False)
    assert second is not None and second.entries == (b"record 2",) and second.number == first.number + 1


def test_a_batch_is_bounded() -> None:
    backlog = Backlog(map_memory(None), is_valid=valid)
    for _ in range(BATCH_ENTRIES + 1):
        backlog.append("c", b"record")
    assert len(take(backlog)) == BATCH_ENTRIES
    assert len(take(backlog)) == 1


def test_without_room_the_record_is_counted_by_its_connection() -> None:
    backlog = Backlog(small(), is_valid=valid)
    for _ in range(100):
        backlog.append("c-1", b"record".ljust(96))
    backlog.append("c-2", b"record".ljust(4097))
    batch = backlog.batch(anyway=False)
    assert batch is not None and len(batch.entries) == 40
    assert batch.dropped == {"c-1": 60, "c-2": 1}
    assert backlog.acknowledged(batch.stream, batch.number)
    assert backlog.is_empty
    backlog.append("c-1", b"record")
    assert take(backlog) == (b"record",)


def test_a_successor_sends_what_its_predecessor_left_as_it_was_under_way() -> None:
    memory = small()
    killed = Backlog(memory, is_valid=valid)
    killed.append("c", b"record 1")
    sent = killed.batch(anyway=False)
    killed.append("c", b"record 2")
    successor = Backlog(memory, is_valid=valid)
    successor.append("c", b"record 3")
    assert successor.batch(anyway=False) == sent
    assert take(successor) == (b"record 1",)
    assert take(successor) == (b"record 2", b"record 3")


def test_what_ran_or_was_dropped_when_a_worker_was_killed_is_counted_once() -> None:
    memory = small()
    killed = Backlog(memory, is_valid=valid)
    killed.begun(3)
    killed.ended(1)
    killed.append("c", b"record".ljust(4097))
    successor = Backlog(memory, is_valid=valid)
    batch = successor.batch(anyway=False)
    assert batch is not None and (batch.entries, batch.lost, batch.dropped) == ((), 3, {})
    # Not acknowledged: the next one tells the same.
    third = Backlog(memory, is_valid=valid)
    again = third.batch(anyway=False)
    assert again is not None and again.lost == 3
    assert third.acknowledged(again.stream, again.number) and third.is_empty


@pytest.mark.parametrize("word", range(3, 11))
def test_memory_that_makes_no_sense_is_begun_anew_and_counted(word: int) -> None:
    memory = small()
    before = Backlog(memory, is_valid=valid)
    before.append("c", b"record 1")
    stream = before.stream
    struct.pack_into("<Q", memory, word * 8, (1 << 64) - 1)
    after = Backlog(memory, is_valid=valid)
    assert after.stream != stream
    batch = after.batch(anyway=False)
    assert batch is not None and batch.entries == () and batch.lost == 1


def test_entries_that_dtma_would_not_take_are_not_sent() -> None:
    memory = small()
    Backlog(memory, is_valid=valid).append("c", b"something else")
    batch = Backlog(memory, is_valid=valid).batch(anyway=False)
    assert batch is not None and (batch.entries, batch.lost) == ((), 1)
    good = {"id": uuid7(1e9), "connection": "c", "tool": "t", "outcome": "ok"}
    good |= {"duration_ms": 1, "bytes_in": 1, "bytes_out": 1}
    assert is_entry(json.dumps(good).encode())
    assert not is_entry(json.dumps(good | {"arguments": {}}).encode())
    assert not is_entry(json.dumps(good | {"outcome": "fine"}).encode())


@settings(max_examples=60)
@given(st.lists(st.one_of(st.integers(6, 700), st.just(0), st.just(-1)), max_size=60))
def test_round_and_round_the_ring_nothing_is_lost_but_what_is_counted(steps: list[int]) -> None:
    """A number appends that many bytes, 0 takes a batch, -1 is a change of worker."""
    memory = small()
    backlog = Backlog(memory, is_valid=valid)
    written = taken = counted = 0
    for step in [*steps, *[0] * 64]:
        if step > 0:
            backlog.append("c", b"record".ljust(step))
            written += 1
        elif step < 0:
            backlog = Backlog(memory, is_valid=valid)
        elif (batch := backlog.batch(anyway=False)) is not None:
            taken += len(batch.entries)
            counted += batch.lost + sum(batch.dropped.values())
            backlog.acknowledged(batch.stream, batch.number)
    assert taken + counted == written and backlog.is_empty


def test_ids_are_of_version_7_and_carry_their_time() -> None:
    found = uuid.UUID(uuid7(1_700_000_000.125))
    assert found.version == 7 and found.variant == uuid.RFC_4122
    assert found.int >> 80 == 1_700_000_000_125
    assert uuid7(1.0) != uuid7(1.0)

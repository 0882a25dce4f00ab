from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest

from support.reconcilers.fakes import ManualClock
from support.reconcilers.memory_calls import call
from toolbox_operator.domain.usage import Use
from toolbox_operator.store.api import Kept, Refusal
from toolbox_operator.store.calls import judge, tally, together
from toolbox_operator.store.ids import first_id, uuid7
from toolbox_operator.store.jobs import Away, Jobs
from toolbox_operator.store.none import NoRecord

ONE, TWO = "0f2d3c4b-5a69-4788-9c0d-1e2f3a4b5c6d", "1f2d3c4b-5a69-4788-9c0d-1e2f3a4b5c6d"
NOW = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "kept"),
    [
        (NOW, True),
        (NOW.replace(hour=0, minute=0) - timedelta(days=90), True),
        (NOW.replace(hour=0, minute=0) - timedelta(days=90, microseconds=1), False),
        (NOW.replace(hour=23, minute=59) + timedelta(days=1), True),
        (NOW.replace(hour=0, minute=0) + timedelta(days=2), False),
        (datetime(1970, 1, 1, tzinfo=UTC), False),
        (datetime(9999, 12, 31, 23, 59, tzinfo=UTC), False),
    ],
)
def test_only_days_that_have_a_partition_are_accepted(at: datetime, kept: bool) -> None:
    judged = judge([call(ONE, NOW, started_at=at)], NOW)
    assert (len(judged.calls), dict(judged.refused)) == ((1, {}) if kept else (0, {Refusal.CLOCK: 1}))


def test_ids_that_are_no_uuids_are_refused_alone() -> None:
    judged = judge([call("no-uuid", NOW), call(ONE, NOW, instance="no-uuid"), call(TWO, NOW)], NOW)
    assert [each.connection for each in judged.calls] == [TWO]
    assert dict(judged.refused) == {Refusal.DATA: 2}


def test_a_tally_has_the_number_and_the_newest_whatever_the_order() -> None:
    later = NOW + timedelta(seconds=5)
    assert tally([call(ONE, later), call(TWO, NOW), call(ONE.upper(), NOW)]) == {
        ONE: Use(2, later),
        TWO: Use(1, NOW),
    }


def test_of_two_halves_the_later_has_the_sums() -> None:
    one = Kept(2, {Refusal.CLOCK: 1}, {ONE: Use(2, NOW), TWO: Use(1, NOW)})
    two = Kept(3, {Refusal.CLOCK: 1, Refusal.DATA: 1}, {ONE: Use(5, NOW)})
    assert together(one, two) == Kept(5, {Refusal.CLOCK: 2, Refusal.DATA: 1}, {ONE: Use(5, NOW), TWO: Use(1, NOW)})


def test_ids_of_a_moment_begin_where_those_before_end() -> None:
    rng = random.Random(1)
    before, at = uuid7(NOW - timedelta(milliseconds=1), rng), uuid7(NOW, rng)
    assert before < first_id(NOW) < at


async def test_whoever_waits_for_a_job_is_told_when_nothing_can_be_kept() -> None:
    woken: list[None] = []
    jobs = Jobs(lambda: woken.append(None))
    waiting = [asyncio.create_task(jobs.do(_nothing)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    jobs.give_up()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, Away, Away]
    assert len(woken) == 3
    assert jobs.next() is None


async def test_without_a_record_counts_go_on_from_what_status_shows() -> None:
    clock = ManualClock(seconds=0, epoch=NOW)
    record = NoRecord(clock)
    kept = await record.keep_calls([call(ONE, NOW), call(ONE, NOW), call(TWO, NOW)], {ONE: 40})
    assert kept.used == {ONE: Use(42, NOW), TWO: Use(1, NOW)}
    kept = await record.keep_calls([call(ONE, NOW)], {ONE: 40})
    assert kept.used == {ONE: Use(43, NOW)}
    assert await record.used() == {ONE: Use(43, NOW), TWO: Use(1, NOW)}


async def _nothing(_: object) -> None:
    return None

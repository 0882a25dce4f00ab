"""When a key joins the ring, signs, and leaves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.link.messages import KeyRing
from toolbox_dtma.state.keyring import (
    LOOK_AT_LEAST,
    Announce,
    Drop,
    Promote,
    Rest,
    announced,
    decide,
    first_ring,
    promoted,
    without,
)
from toolbox_dtma.state.records import KeyRingRecord

NOW = datetime(2026, 11, 1, tzinfo=UTC)
DAY, WEEK = timedelta(days=1), timedelta(days=7)


def step(record: KeyRingRecord, now: datetime) -> Announce | Promote | Drop | Rest:
    return decide(record, now, lifetime=DAY, kept=WEEK)


def kids(record: KeyRingRecord) -> list[str]:
    return [key.kid for key in record.keyring.keys]


def test_a_key_signs_for_its_lifetime() -> None:
    record = first_ring(NOW)
    assert step(record, NOW) == Rest(LOOK_AT_LEAST)
    assert step(record, NOW + DAY - timedelta(minutes=5)) == Rest(timedelta(minutes=5))
    assert step(record, NOW + DAY) == Announce()


def test_a_new_key_is_known_before_it_signs_and_the_old_one_stays_for_a_week() -> None:
    record = announced(first_ring(NOW))
    assert (kids(record), record.keyring.signing) == (["k1", "k2"], "k1")
    assert step(record, NOW + DAY) == Promote("k2")
    record = promoted(record, "k2", NOW + DAY)
    assert (kids(record), record.keyring.signing) == (["k1", "k2"], "k2")
    assert step(record, NOW + DAY) == Rest(LOOK_AT_LEAST)
    record = record.model_copy(update={"signing_since": NOW + WEEK})
    assert step(record, NOW + DAY + WEEK - timedelta(seconds=1)) == Rest(timedelta(seconds=1))
    assert step(record, NOW + DAY + WEEK) == Drop(frozenset({"k1"}))
    record = without(record, frozenset({"k1"}))
    assert (kids(record), record.retired) == (["k2"], {})


def test_a_restart_goes_on_with_a_key_that_was_only_announced() -> None:
    record = announced(first_ring(NOW))
    again = KeyRingRecord.model_validate_json(record.model_dump_json())
    assert step(again, NOW) == Promote("k2")


def test_a_ring_of_before_keys_were_renewed_is_renewed_at_once() -> None:
    old = KeyRingRecord(keyring=first_ring(NOW).keyring)
    assert (
        step(KeyRingRecord.model_validate_json(old.model_dump_json(include={"keyring", "version"})), NOW) == Announce()
    )


def test_a_name_in_use_is_never_given_again() -> None:
    record = first_ring(NOW)
    odd = record.keyring.keys[0].model_copy(update={"kid": "own"})
    record = KeyRingRecord(keyring=KeyRing(signing="own", keys=(odd, *first_ring(NOW).keyring.keys)))
    assert kids(announced(record)) == ["own", "k1", "k2"]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60))
def test_at_any_time_the_signing_key_is_in_the_ring_and_the_ring_stays_small(hours: list[int]) -> None:
    now, record = NOW, first_ring(NOW)
    for passed in hours:
        now += timedelta(hours=passed)
        for _ in range(40):
            match step(record, now):
                case Announce():
                    record = announced(record)
                case Promote(kid):
                    record = promoted(record, kid, now)
                case Drop(gone):
                    assert record.keyring.signing not in gone
                    record = without(record, gone)
                case Rest(duration):
                    assert timedelta() < duration <= LOOK_AT_LEAST
                    break
        else:
            raise AssertionError("it never rests")
        assert record.keyring.signing in kids(record) and len(kids(record)) == len(set(kids(record))) <= 9
        assert all(now - since < WEEK for since in record.retired.values())

"""Whose acknowledgement counts, as a table of lives of worker processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.policy.members import Member, Members
from toolbox_dtma.policy.process import ProcessId

A, B = (ProcessId(pid, pid, "boot") for pid in (1, 2))


def members(*previous: ProcessId) -> Members:
    return Members(previous, now=0, lost_seconds=30)


def joined(group: Members, process: ProcessId, revision: int, *, acked: int | None = None) -> Member:
    member = group.joined(process, revision, now=0)
    if acked is not None:
        group.heard(member, acked=acked)
    return member


def test_nobody_obeys_a_grant_where_there_is_no_worker_but_nobody_breaks_a_revocation_either() -> None:
    group = members()
    assert not group.in_force(1, somewhere=True)
    assert group.in_force(1, somewhere=False)


def test_every_worker_has_to_acknowledge() -> None:
    group = members()
    joined(group, A, 1, acked=5)
    late = joined(group, B, 1, acked=4)
    assert not group.in_force(5, somewhere=True)
    group.heard(late, acked=5)
    assert group.in_force(5, somewhere=True)


def test_a_process_that_never_had_policy_delays_nothing_older_than_its_snapshot() -> None:
    group = members()
    joined(group, A, 1, acked=5)
    joined(group, B, 5)
    assert group.in_force(5, somewhere=True)
    assert not group.in_force(6, somewhere=False)


def test_a_process_that_only_loads_does_not_make_a_grant_usable() -> None:
    group = members()
    joined(group, A, 5)
    assert not group.in_force(5, somewhere=True)
    assert group.in_force(5, somewhere=False)


def test_a_process_of_the_run_before_counts_until_it_acknowledges_the_new_snapshot() -> None:
    group = members(A)
    assert not group.in_force(1, somewhere=False)
    back = joined(group, A, 7)
    assert not group.in_force(1, somewhere=False)
    group.heard(back, acked=7)
    assert group.in_force(7, somewhere=True)


def test_a_lost_process_counts_for_thirty_seconds() -> None:
    group = members()
    group.lost(joined(group, A, 1, acked=3), 100)
    group.drop_expired(129.9)
    assert not group.in_force(4, somewhere=False)
    assert [member.process for member in group.drop_expired(130)] == [A]
    assert group.in_force(4, somewhere=False)


def test_a_dead_process_counts_no_more() -> None:
    group = members()
    gone = joined(group, A, 1, acked=3)
    group.lost(gone, 100)
    assert group.drop(gone)
    assert group.in_force(4, somewhere=False)


def test_losing_an_older_connection_does_not_lose_the_newer_one() -> None:
    group = members()
    old = joined(group, A, 1, acked=3)
    new = joined(group, A, 3)
    group.lost(old, 100)
    assert new.connected
    assert not group.drop(old)
    group.drop_expired(1000)
    assert group.processes == (A,)


def test_an_acknowledgement_never_goes_backwards() -> None:
    group = members()
    member = joined(group, A, 1, acked=9)
    group.heard(member, acked=4)
    assert group.in_force(9, somewhere=True)


def test_anything_heard_answers_all_pings() -> None:
    group = members()
    member = joined(group, A, 1)
    member.pings = 3
    group.heard(member)
    assert member.pings == 0


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from(["join", "ack", "lose"])), max_size=30))
def test_a_revision_is_never_in_force_while_a_process_may_act_on_older_policy(
    steps: list[tuple[ProcessId, str]],
) -> None:
    """The model: the oldest revision each living process may act on; it moves only by an acknowledgement."""
    group = members()
    live: dict[ProcessId, Member] = {}
    oldest: dict[ProcessId, int] = {}
    revision = 1
    for process, step in steps:
        revision += 1
        if step == "join":
            live[process] = group.joined(process, revision, now=0)
            oldest.setdefault(process, revision)
        elif process in live and step == "ack" and live[process].connected:
            group.heard(live[process], acked=revision)
            oldest[process] = revision
        elif process in live and step == "lose":
            group.lost(live[process], 0)
        for wanted in range(revision + 1):
            if group.in_force(wanted, somewhere=False):
                assert all(held >= wanted for held in oldest.values())

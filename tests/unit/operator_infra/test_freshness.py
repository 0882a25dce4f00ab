"""A watch that stopped delivering is found out, and a healthy one is left in peace."""

from __future__ import annotations

import pytest

from support.reconcilers.fakes import ManualClock, body_of
from toolbox_operator.api.meta import Body, Kind
from toolbox_operator.kube.freshness import WatchJudge

KIND = Kind.MCP_SERVER


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def judge(clock: ManualClock) -> WatchJudge:
    judge = WatchJudge(clock, fresh=30.0, missed=60.0)
    judge.start()
    return judge


def test_before_they_are_started_watches_owe_nothing(clock: ManualClock) -> None:
    judge = WatchJudge(clock, fresh=30.0)
    clock.advance(1000)
    assert judge.problem() is None


def server(number: int) -> Body:
    return body_of(KIND, "a", number)


def test_a_lease_that_keeps_changing_is_a_healthy_watch(judge: WatchJudge, clock: ManualClock) -> None:
    for _ in range(50):
        clock.advance(2)
        judge.saw_lease()
    assert judge.problem() is None


def test_a_silent_watch_of_the_lease_is_a_problem(judge: WatchJudge, clock: ManualClock) -> None:
    judge.saw_lease()
    clock.advance(31)
    assert "own Lease" in (judge.problem() or "")


def test_a_watch_that_never_delivered_is_a_problem_as_well(judge: WatchJudge, clock: ManualClock) -> None:
    clock.advance(31)
    assert judge.problem() is not None


def missed(judge: WatchJudge, clock: ManualClock) -> str | None:
    """The verdict after a minute in which only the Lease was seen."""
    for _ in range(61):
        clock.advance(1)
        judge.saw_lease()
    return judge.problem()


def test_a_version_that_only_a_list_shows_for_a_minute_is_a_problem(judge: WatchJudge, clock: ManualClock) -> None:
    judge.delivered(KIND, None, server(5))
    judge.listed(KIND, [server(9)], "10", accepted=True)
    assert "missed a change of ns/a" in (missed(judge, clock) or "")


def test_a_later_relist_does_not_forgive_the_first_miss(judge: WatchJudge, clock: ManualClock) -> None:
    judge.listed(KIND, [server(9)], "10", accepted=True)
    clock.advance(40)
    judge.listed(KIND, [server(12)], "13", accepted=True)
    clock.advance(21)
    judge.saw_lease()
    assert judge.problem() is not None


def test_a_watch_that_catches_up_is_healthy(judge: WatchJudge, clock: ManualClock) -> None:
    judge.listed(KIND, [server(9)], "10", accepted=True)
    judge.delivered(KIND, "MODIFIED", server(11))
    assert missed(judge, clock) is None


def test_a_list_that_shows_what_the_watch_delivered_is_no_problem(judge: WatchJudge, clock: ManualClock) -> None:
    judge.delivered(KIND, None, server(9))
    judge.listed(KIND, [server(9)], "10", accepted=True)
    assert missed(judge, clock) is None


def test_a_deletion_that_no_watch_told_of_is_no_evidence(judge: WatchJudge, clock: ManualClock) -> None:
    judge.delivered(KIND, None, server(9))
    judge.listed(KIND, [server(12)], "13", accepted=True)
    judge.listed(KIND, [], "20", accepted=True)
    assert missed(judge, clock) is None


def test_a_server_that_stays_in_the_past_is_a_problem(judge: WatchJudge, clock: ManualClock) -> None:
    judge.listed(KIND, [], "5", accepted=False)
    assert "older" in (missed(judge, clock) or "")
    judge.listed(KIND, [], "50", accepted=True)
    assert judge.problem() is None

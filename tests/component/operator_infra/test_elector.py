"""The elector against an API server that conflicts, falls silent and loses answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from support.async_poll import until
from support.reconcilers.fake_kube import FakeKube, failure
from support.reconcilers.fakes import ManualClock
from toolbox_operator.kube.elector import LEASE_NAME, Elector, LeadershipLost
from toolbox_operator.kube.rest import KubeRest
from toolbox_operator.runtime import Fenced, Timings

PATH = f"/apis/coordination.k8s.io/v1/namespaces/sys/leases/{LEASE_NAME}"
TIMINGS = Timings(lease_duration=15.0, lease_renew_deadline=10.0, lease_retry=2.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


Candidate = Callable[[str], Elector]


@pytest.fixture
def candidate(rest: KubeRest, clock: ManualClock) -> Candidate:
    """Makes electors whose sleeps only move the clock."""

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)
        await asyncio.sleep(0)

    def make(identity: str) -> Elector:
        return Elector(
            rest, namespace="sys", identity=identity, owner="cluster", clock=clock, timings=TIMINGS, sleep=sleep
        )

    return make


async def within(elector: Elector, clock: ManualClock) -> float:
    """How long the candidate took to lead, on its clock."""
    started = clock.seconds
    await asyncio.wait_for(elector.acquire(), 10)
    return clock.seconds - started


def held_by(fake: FakeKube, holder: str) -> None:
    fake.version += 1
    fake.objects[PATH]["spec"]["holderIdentity"] = holder
    fake.objects[PATH]["metadata"]["resourceVersion"] = str(fake.version)


async def test_the_first_leader_has_epoch_one(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    with pytest.raises(Fenced):
        elector.check()
    await elector.acquire()
    elector.check()
    assert elector.epoch == 1
    spec = fake.objects[PATH]["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"], spec["leaseDurationSeconds"]) == ("a", 1, 15)
    assert fake.objects[PATH]["metadata"]["labels"] == {"magictoolbox.dev/lease": LEASE_NAME}


async def test_a_lease_that_stays_unchanged_is_taken_after_its_duration_and_not_before(
    candidate: Candidate, clock: ManualClock
) -> None:
    await candidate("a").acquire()
    elector = candidate("b")
    assert await within(elector, clock) >= 15.0
    assert elector.epoch == 2


async def test_expiry_is_judged_by_change_and_not_by_the_holders_clock(
    candidate: Candidate, fake: FakeKube, clock: ManualClock
) -> None:
    await candidate("a").acquire()
    fake.objects[PATH]["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert await within(candidate("b"), clock) >= 15.0


async def test_a_released_lease_is_taken_at_once(candidate: Candidate, clock: ManualClock) -> None:
    first, second = candidate("a"), candidate("b")
    await first.acquire()
    await first.release()
    with pytest.raises(Fenced):
        first.check()
    assert await within(second, clock) < 3.0
    assert second.epoch == 2


async def test_a_lease_is_released_although_the_stop_cancelled_a_renewal_that_took_effect(
    candidate: Candidate, fake: FakeKube, clock: ManualClock
) -> None:
    first, second = candidate("a"), candidate("b")
    await first.acquire()
    holding = asyncio.create_task(first.hold())

    def stopped(method: str, path: str) -> bool:
        return method == "PUT" and holding.cancel()

    fake.lost = stopped
    await asyncio.wait({holding}, timeout=10)
    assert holding.cancelled()
    fake.lost = lambda method, path: False
    await first.release()
    assert fake.objects[PATH]["spec"]["holderIdentity"] == ""
    assert await within(second, clock) < 3.0
    assert second.epoch == 2


@pytest.mark.parametrize("there", [False, True])
async def test_a_lease_is_released_although_the_stop_cancelled_its_acquisition_which_took_effect(
    candidate: Candidate, fake: FakeKube, clock: ManualClock, there: bool
) -> None:
    first, second = candidate("a"), candidate("b")
    if there:
        await second.acquire()
        await second.release()
    acquiring = asyncio.create_task(first.acquire())
    fake.lost = lambda method, path: method in ("POST", "PUT") and acquiring.cancel()
    await asyncio.wait({acquiring}, timeout=10)
    assert acquiring.cancelled() and fake.objects[PATH]["spec"]["holderIdentity"] == "a"
    fake.lost = lambda method, path: False
    await first.release()
    assert fake.objects[PATH]["spec"]["holderIdentity"] == ""
    assert await within(second, clock) < 3.0


async def test_a_candidate_that_never_asked_for_the_lease_releases_nothing(
    candidate: Candidate, fake: FakeKube
) -> None:
    first, second = candidate("a"), candidate("b")
    await first.acquire()
    acquiring = asyncio.create_task(second.acquire())
    fake.lost = lambda method, path: method == "GET" and acquiring.cancel()
    await asyncio.wait({acquiring}, timeout=10)
    assert acquiring.cancelled()
    writes = len(fake.writes())
    await second.release()
    assert len(fake.writes()) == writes
    first.check()


async def test_a_lease_that_another_took_is_not_released(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    await elector.acquire()
    held_by(fake, "b")
    await elector.release()
    assert fake.objects[PATH]["spec"]["holderIdentity"] == "b"


async def test_the_fence_closes_before_anybody_else_may_lead(candidate: Candidate, clock: ManualClock) -> None:
    elector = candidate("a")
    await elector.acquire()
    clock.advance(TIMINGS.lease_renew_deadline)
    with pytest.raises(Fenced):
        elector.check()
    assert TIMINGS.lease_renew_deadline < TIMINGS.lease_duration


async def test_renewing_keeps_the_lease_and_the_epoch(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    await elector.acquire()
    holding = asyncio.create_task(elector.hold())
    await until("renewed often", lambda: len(fake.writes()), lambda writes: writes >= 20)
    elector.check()
    assert elector.epoch == 1
    holding.cancel()


async def test_a_server_that_stops_answering_ends_leadership(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    await elector.acquire()
    fake.fault = lambda method, path: failure(500, "Internal")
    with pytest.raises(LeadershipLost):
        await asyncio.wait_for(elector.hold(), 10)
    with pytest.raises(Fenced):
        elector.check()


async def test_a_holder_that_was_paused_too_long_gives_up_without_another_write(
    candidate: Candidate, fake: FakeKube, clock: ManualClock
) -> None:
    elector = candidate("a")
    await elector.acquire()
    before = len(fake.requests)
    clock.advance(11.0)
    with pytest.raises(LeadershipLost):
        await asyncio.wait_for(elector.hold(), 10)
    assert len(fake.requests) == before


async def test_a_lease_taken_by_another_is_lost_at_the_next_renewal(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    await elector.acquire()
    held_by(fake, "b")
    with pytest.raises(LeadershipLost, match="another process"):
        await asyncio.wait_for(elector.hold(), 10)
    assert fake.objects[PATH]["spec"]["holderIdentity"] == "b"


async def test_a_deleted_lease_is_lost(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    await elector.acquire()
    del fake.objects[PATH]
    with pytest.raises(LeadershipLost, match="deleted"):
        await asyncio.wait_for(elector.hold(), 10)


async def test_an_annotation_by_somebody_does_not_cost_the_lease(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    await elector.acquire()
    fake.version += 1
    fake.objects[PATH]["metadata"]["resourceVersion"] = str(fake.version)
    fake.objects[PATH]["metadata"]["annotations"] = {"somebody": "was here"}
    holding = asyncio.create_task(elector.hold())
    await until("renewed", lambda: len(fake.writes()), lambda writes: writes >= 6)
    holding.cancel()
    elector.check()
    assert fake.objects[PATH]["metadata"]["annotations"] == {"somebody": "was here"}


async def test_a_renewal_whose_answer_was_lost_is_recognised_as_our_own(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    await elector.acquire()
    renewals: list[str] = []

    def first_renewal(method: str, path: str) -> bool:
        if method == "PUT":
            renewals.append(path)
        return len(renewals) == 1

    fake.lost = first_renewal
    holding = asyncio.create_task(elector.hold())
    await until("renewed after that", lambda: len(renewals), lambda times: times >= 4)
    holding.cancel()
    elector.check()
    assert elector.epoch == 1


async def test_an_acquisition_whose_answer_was_lost_is_taken_again(candidate: Candidate, fake: FakeKube) -> None:
    fake.lost = lambda method, path: method == "POST"
    elector = candidate("a")
    await asyncio.wait_for(elector.acquire(), 5)
    assert elector.epoch == 2
    assert fake.objects[PATH]["spec"]["holderIdentity"] == "a"


async def test_of_two_candidates_that_create_the_lease_one_leads(candidate: Candidate, fake: FakeKube) -> None:
    fake.fault = lambda method, path: 0.02
    first, second = candidate("a"), candidate("b")
    tasks = [asyncio.create_task(elector.acquire()) for elector in (first, second)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    assert len(done) == 1
    for task in pending:
        task.cancel()
    assert first.leading != second.leading


async def test_the_epoch_is_raised_above_what_a_host_knows_and_never_lowered(
    candidate: Candidate, fake: FakeKube
) -> None:
    elector = candidate("a")
    await elector.acquire()
    await elector.raise_epoch(41)
    assert elector.epoch == 42
    assert fake.objects[PATH]["spec"]["leaseTransitions"] == 42
    await elector.raise_epoch(7)
    assert elector.epoch == 42


async def test_a_process_that_lost_the_lease_cannot_raise_it(candidate: Candidate, fake: FakeKube) -> None:
    elector = candidate("a")
    await elector.acquire()
    held_by(fake, "b")
    with pytest.raises(Fenced):
        await elector.raise_epoch(41)
    assert fake.objects[PATH]["spec"]["holderIdentity"] == "b"


async def test_an_unreachable_server_is_waited_for(candidate: Candidate, fake: FakeKube) -> None:
    failures = iter([failure(500, "Internal"), failure(403, "Forbidden"), failure(503, "Unavailable")])
    fake.fault = lambda method, path: next(failures, None)
    elector = candidate("a")
    assert not elector.contacted
    await asyncio.wait_for(elector.acquire(), 5)
    assert elector.contacted

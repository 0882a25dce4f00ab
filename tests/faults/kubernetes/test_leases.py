"""Who leads, and who leads next: orderly ends, Leases that people delete or make anew, clocks that jump."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from localstack.quickstart import Target
from support.kubernetes.api import LEASE
from support.poll import until
from support.proxies.faults import Exchange
from support.system.arena import Arena, on
from support.system.pair import Candidate, Pair
from support.system.space import Space

pytestmark = pytest.mark.faults

RENEWALS = on("leases", "replace")


@contextmanager
def calling(space: Space, secret: dict[str, str]) -> Generator[list[str | None]]:
    """An agent that calls without a pause; yields what each call came to, None for an answer."""
    done, came = threading.Event(), list[str | None]()

    def call() -> None:
        while not done.is_set():
            came.append(space.world.refusal(secret, "echo", {}))

    thread = threading.Thread(target=call, name="agent")
    thread.start()
    try:
        yield came
    finally:
        done.set()
        thread.join(timeout=60)


def works(space: Space, server: Target) -> None:
    """Whoever leads reconciles, and the host follows."""
    before = space.world.status(server)["phase"]
    other = {"Active": ("Stopped", "Stopped"), "Stopped": ("Running", "Active")}[before]
    space.world.patch(server, {"spec": {"state": other[0]}})
    space.world.await_status(server, phase=other[1], seconds=90)


def holders(proxy_journal: list[Exchange]) -> list[str]:
    """Who held the Lease after each write to it that was accepted."""
    done = [exchange for exchange in proxy_journal if exchange.answered == 200]
    return [str(exchange.request.document["spec"]["holderIdentity"]) for exchange in done]


def test_an_orderly_end_hands_over_at_once_and_no_call_fails(arena: Arena, pair: Pair, pair_space: Space) -> None:
    world = pair_space.world
    server, connection = pair_space.server("quiet"), pair_space.connection("bot", "quiet")
    world.await_condition(connection, "Ready", "True")
    secret = pair_space.secret("bot")
    leader, standby = pair.roles()
    epoch, leaders, others = pair.epoch, leader.proxy.mark(), standby.proxy.mark()
    with calling(pair_space, secret) as came:
        assert leader.replica.stop() == 0
        late = pair_space.connection("late", "quiet")
        standby.replica.await_leading()
        world.await_condition(late, "Ready", "True")
        until("calls", lambda: len(came), lambda count: count >= 3)
    assert set(came) == {None}
    assert pair.epoch == epoch + 1
    released = leader.proxy.since(leaders, RENEWALS)[-1]
    assert holders([released]) == [""]
    # The one that waits took the Lease at its first look at a free one.
    freed, taken = released.told_at, standby.proxy.since(others, RENEWALS)[0].request.at
    assert freed is not None
    looks = [e.request.at for e in standby.proxy.since(others, on("leases", "get"))]
    assert len([at for at in looks if freed < at < taken]) <= 1
    leader.replica.start()
    pair.roles()
    works(pair_space, server)


def ended(candidate: Candidate, before: int) -> None:
    """It lost the Lease, ended with 1, and was started again."""
    assert candidate.replica.await_exit(before + 1) == 1
    until("started again", lambda: candidate.replica.probe("/readyz")[0], lambda status: status == 200, seconds=60)


@pytest.mark.parametrize("how", ["deleted", "made anew with fewer transitions"])
def test_a_lease_that_somebody_removes_is_raised_above_what_hosts_know(
    arena: Arena, pair: Pair, pair_space: Space, how: str
) -> None:
    server = pair_space.server("quiet")
    pair_space.world.await_condition(server, "Ready", "True")
    leader, _ = pair.roles()
    container = pair_space.world.status(server)["container"]["id"]
    epoch, before = pair.epoch, len(leader.replica.exits)
    arena.api.request("DELETE", LEASE)
    if how != "deleted":
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE.rsplit("/", 1)[1]},
            "spec": {"leaseTransitions": 0},
        }
        # An operator may be faster; then there is one with 1, which is as good.
        arena.api.create_unless_there(LEASE.rsplit("/", 1)[0], lease)
    ended(leader, before)
    pair.roles()
    until("raised", lambda: pair.epoch, lambda found: found > epoch, seconds=60)
    assert pair_space.world.status(server)["container"]["id"] == container
    works(pair_space, server)


def test_clocks_that_jump_change_no_leader(arena: Arena, pair: Pair, pair_space: Space) -> None:
    server = pair_space.server("quiet")
    pair_space.world.await_condition(server, "Ready", "True")
    leader, standby = pair.roles()
    holder = arena.api.lease()["holderIdentity"]
    epoch, exits = pair.epoch, [len(one.replica.exits) for one in pair.candidates]
    for ahead, behind in (("3600", "-600"), ("-7200", "600"), ("0", "0")):
        leader.turn_clock(ahead)
        standby.turn_clock(behind)
        mark, seen = leader.proxy.mark(), standby.proxy.mark()
        # So many renewals, and looks of the other, that a judgement by the wall clock would have come.
        until("renewals", lambda m=mark: leader.proxy.since(m, RENEWALS), lambda found: len(found) >= 6)
        until("looks", lambda m=seen: standby.proxy.since(m, on("leases", "get")), lambda found: len(found) >= 5)
        works(pair_space, server)
    assert arena.api.lease()["holderIdentity"] == holder
    assert pair.epoch == epoch
    assert [len(one.replica.exits) for one in pair.candidates] == exits

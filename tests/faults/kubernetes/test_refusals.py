"""A Kubernetes API that refuses, is overloaded, slow or gone: few requests meanwhile, and all is made good after."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pytest

from support import manifests
from support.kubernetes.api import ApiRefused, KubeApi, path_of
from support.poll import until
from support.proxies.faults import Cut, Exchange, Match, Refuse, Request, Slow
from support.system.arena import Arena, Watched, interrupt, on
from support.system.space import SYSTEM, Space

pytestmark = pytest.mark.faults

LEASES = on("leases")
MANY = 10
RETRY_AFTER = 2
SLOW = 1.0
"""Seconds before each answer. The operator's writes have 3, so that a busy machine may be slow as well."""


@pytest.fixture(scope="module")
def operator_arguments() -> tuple[str, ...]:
    return ("--timing=lease_duration=9", "--timing=lease_renew_deadline=6")


def but_leases(request: Request) -> bool:
    """Everything that does not decide who leads."""
    return not LEASES(request)


def writes_of(resource: str, name: str = "") -> Match:
    """Writes to objects of a kind."""
    return on(resource, "create", "replace", "patch", "delete", name=name)


def created_name(request: Request) -> str:
    """Of the object that a request creates: its target names the collection only, which others share. Else ""."""
    return request.document["metadata"]["name"] if request.verb == "create" else ""


def busiest_second(exchanges: Sequence[Exchange]) -> int:
    """The most requests that any second began with."""
    times = [exchange.request.at for exchange in exchanges]
    return max((sum(start <= at < start + 1.0 for at in times) for start in times), default=0)


@contextmanager
def bumping(arena: Arena, path: str) -> Generator[list[int]]:
    """A foreign writer that changes an object every 50 ms; yields a list that grows with each change."""
    done, bumps = threading.Event(), list[int]()

    def bump() -> None:
        own = KubeApi(arena.api.access)
        while not done.wait(0.05):
            try:
                own.merge(path, {"metadata": {"annotations": {"example.com/bump": str(len(bumps))}}})
            except ApiRefused as error:
                if error.status != 404:
                    raise
            bumps.append(1)

    thread = threading.Thread(target=bump, name="foreign writer")
    thread.start()
    try:
        yield bumps
    finally:
        done.set()
        thread.join(timeout=30)


def test_a_foreign_writer_that_never_stops_holds_up_nothing(arena: Arena, operator: Watched, space: Space) -> None:
    server, connection = space.server("stormy"), space.connection("bot", "stormy")
    path = path_of("MCPServer", space.namespace, "stormy")
    mark = operator.proxy.mark()
    with bumping(arena, path) as bumps:
        space.world.await_condition(server, "Ready", "True")
        space.world.await_condition(connection, "Ready", "True")
        space.world.patch(server, {"spec": {"state": "Stopped"}})
        space.world.await_status(server, phase="Stopped")
        until("a storm", lambda: len(bumps), lambda count: count >= 60)
        bumped = len(bumps)
    seen = operator.proxy.since(mark, writes_of("mcpservers", "stormy"))
    # Each attempt follows a change that was seen; nobody hammers faster than the storm itself.
    assert len(seen) <= bumped
    assert busiest_second(seen) <= 25
    # A storm around an object that is as it should be makes no writes at all.
    quiet = operator.proxy.mark()
    with bumping(arena, path) as bumps:
        until("a storm", lambda: len(bumps), lambda count: count >= 40)
    assert operator.proxy.since(quiet, writes_of("mcpservers")) == []
    assert operator.replica.exits == []


def test_conflicts_without_end_are_tried_at_a_bounded_rate(operator: Watched, space: Space) -> None:
    server = space.server("refused")
    space.world.await_condition(server, "Ready", "True")
    conflict = on("mcpservers", "replace", name="refused")
    mark = operator.proxy.mark()
    fault = operator.proxy.fault(conflict, Refuse(409, "Conflict"))
    space.world.patch(server, {"spec": {"state": "Stopped"}})
    until("conflicts", lambda: fault.hits, lambda hits: hits >= 15)
    assert busiest_second(operator.proxy.since(mark, conflict)) <= 15
    operator.proxy.remove(fault)
    space.world.await_status(server, phase="Stopped")


def test_retry_after_is_honoured_for_each_object(operator: Watched, space: Space) -> None:
    server = space.server("quiet")
    names = [f"c{number}" for number in range(MANY)]
    space.apply(*(manifests.connection(space.namespace, name, "quiet") for name in names))
    targets = [space.connection(name, "quiet") for name in names]
    for target in targets:
        space.world.await_condition(target, "Ready", "True")
    mark = operator.proxy.mark()
    busy = operator.proxy.fault(but_leases, Refuse(429, "TooManyRequests", RETRY_AFTER))
    for target in targets:
        space.world.patch(target, {"spec": {"active": False}})
    until("refused", lambda: busy.hits, lambda hits: hits >= 2 * MANY)
    operator.proxy.remove(busy)
    for target in targets:
        space.world.await_status(target, phase="Disconnected")
    refused = [exchange for exchange in operator.proxy.since(mark, but_leases) if exchange.told == 429]
    by_object = defaultdict[tuple[str, str, str], list[float]](list)
    for exchange in refused:
        request = exchange.request
        by_object[request.method, request.target, created_name(request)].append(request.at)
    lasted = max(e.request.at for e in refused) - min(e.request.at for e in refused)
    for request, times in by_object.items():
        # What all of them need, the Toolbox's CA, is read by each of them, and by the Toolbox itself.
        readers = MANY + 1 if request[0] == "GET" and f"/namespaces/{SYSTEM}/secrets/" in request[1] else 1
        # The first, those of events that came in between (the host's word on its grant), and one for each wait.
        assert len(times) <= readers * (3 + lasted / RETRY_AFTER), f"{request}: {times}"
    space.world.await_condition(server, "Ready", "True")
    assert operator.replica.exits == []


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_for_a_while_is_not_stormed_and_all_is_made_good_spread_out(
    operator: Watched, space: Space, status: int
) -> None:
    server = space.server("quiet")
    names = [f"c{number}" for number in range(MANY)]
    space.apply(*(manifests.connection(space.namespace, name, "quiet") for name in names))
    targets = [space.connection(name, "quiet") for name in names]
    for target in targets:
        space.world.await_condition(target, "Ready", "True")
    secret = space.secret("c0")
    mark = operator.proxy.mark()
    failing = operator.proxy.fault(but_leases, Refuse(status, "InternalError"))
    for target in targets:
        space.world.patch(target, {"spec": {"expose": {"tools": {"allow": ["echo"], "deny": []}}}})
    writes = writes_of("agentmcpconnections")
    # What each reconcile of a connection begins with: the CA. The back-off of all has reached its bound: 1, 2, 2 s.
    reads = on("secrets", "get")
    until("retried", lambda: len(operator.proxy.since(mark, reads)), lambda count: count >= 4 * MANY, seconds=60)
    assert space.world.refusal(secret, "echo", {}) is None, "agents work on"
    seen = operator.proxy.since(mark, but_leases)
    assert busiest_second(seen) <= 8 * MANY
    lasted = seen[-1].request.at - seen[0].request.at
    assert len(operator.proxy.since(mark, reads)) <= (MANY + 2) * (4 + lasted)
    after = operator.proxy.mark()
    operator.proxy.remove(failing)
    for target in targets:
        space.world.await_condition(target, "Ready", "True")
    caught_up = [e.request.at for e in operator.proxy.since(after, writes)]
    assert max(caught_up) - min(caught_up) > 0.2, "not all at the same moment"
    space.world.await_condition(server, "Ready", "True")
    assert operator.replica.exits == []


def test_a_token_that_is_refused_once_costs_one_start_at_most(operator: Watched, space: Space) -> None:
    server = space.server("first")
    space.world.await_condition(server, "Ready", "True")
    before = len(operator.replica.exits)
    refused = [
        operator.proxy.fault(on("mcpservers", "watch"), Refuse(401, "Unauthorized"), times=1),
        operator.proxy.fault(on("agentmcpconnections", "replace"), Refuse(401, "Unauthorized"), times=1),
    ]
    interrupt(operator.proxy, Cut(), "mcpservers")
    connection = space.connection("bot", "first")
    space.world.await_condition(connection, "Ready", "True")
    until("refused", lambda: [fault.hits for fault in refused], lambda hits: hits == [1, 1])
    operator.replica.await_leading()
    space.world.patch(server, {"spec": {"state": "Stopped"}})
    space.world.await_status(server, phase="Stopped")
    assert operator.replica.exits[before:] in ([], [1])


def test_a_slow_server_slows_everything_down_and_breaks_nothing(arena: Arena, operator: Watched, space: Space) -> None:
    operator.replica.await_leading()
    before = len(operator.replica.exits)
    slow = operator.proxy.fault(lambda request: request.verb != "watch", Slow(SLOW))
    mark = operator.proxy.mark()
    server, connection = space.server("patient"), space.connection("bot", "patient")
    space.world.await_condition(connection, "Ready", "True", seconds=120)
    space.world.await_condition(server, "Ready", "True", seconds=60)
    operator.proxy.remove(slow)
    assert len(space.world.containers_of(space.namespace)) == 1
    assert operator.proxy.since(mark, on("secrets", "create"))
    assert len(operator.replica.exits) == before


def test_a_server_that_is_gone_for_longer_than_the_lease_ends_the_leader_and_no_agent_notices(
    arena: Arena, operator: Watched, space: Space
) -> None:
    replica, before, starts = operator.replica, len(operator.replica.exits), operator.replica.starts
    server, leaving = space.server("kept"), space.connection("leaving", "kept")
    staying = space.connection("staying", "kept")
    for target in (staying, leaving):
        space.world.await_condition(target, "Ready", "True")
    container = space.world.status(server)["container"]["id"]
    secret = space.secret("staying")
    operator.proxy.away()
    try:
        assert replica.await_exit(before + 1) == 1
        until("started again", lambda: replica.starts, lambda count: count > starts)
        until("waiting", lambda: replica.log.count("waiting for the API server"), lambda count: count >= 2)
        until("not ready", lambda: replica.probe("/readyz")[0], lambda status: status == 503)
        # A restart would not help.
        until("healthy", lambda: replica.probe("/healthz")[0], lambda status: status == 200)
        assert space.world.refusal(secret, "echo", {}) is None
        # People go on: the API server is away only for the operator.
        space.delete(leaving, wait=False)
        late = space.connection("late", "kept")
    finally:
        operator.proxy.back()
    space.world.await_condition(late, "Ready", "True")
    until("deleted", lambda: space.world.find(leaving), lambda found: found is None)
    assert len(replica.exits) == before + 1, "no crash loop"
    assert space.world.status(server)["container"]["id"] == container
    assert space.world.refusal(secret, "echo", {}) is None
    assert len(space.world.grants_of(space.namespace)) == 2

"""Watches that end or answer 410, and a deletion that falls between two of them."""

from __future__ import annotations

import pytest

from support.kubernetes.api import path_of
from support.poll import until
from support.proxies.faults import GONE, Cut, Refuse, Silence
from support.system.arena import PATIENT_LEASE, Arena, Watched, interrupt, on
from support.system.space import Space

pytestmark = pytest.mark.faults

OURS = ("toolboxes", "mcpservers", "agentmcpconnections", "secrets")


@pytest.fixture(scope="module")
def operator_arguments() -> tuple[str, ...]:
    return PATIENT_LEASE


def test_a_watch_that_ends_is_taken_up_again(operator: Watched, space: Space) -> None:
    proxy = operator.proxy
    server = space.server("first")
    space.world.await_condition(server, "Ready", "True")
    container = space.world.status(server)["container"]["id"]
    # Cut in the middle; then one that begins with 410; then one that ends with it.
    for end in (Cut(), GONE):
        mark = proxy.mark()
        interrupt(proxy, end)
        space.world.patch(server, {"spec": {"sharing": {"namespaces": {"from": "All" if end == GONE else "Same"}}}})
        for resource in OURS:
            until(f"a new watch of {resource}", lambda m=mark, r=resource: proxy.since(m, on(r, "watch")))
        connection = space.connection("after-gone" if end == GONE else "after-cut", "first")
        space.world.await_condition(connection, "Ready", "True")
    assert space.world.containers_of(space.namespace) == [container]
    assert operator.replica.exits == []


def test_a_watch_request_that_is_refused_as_expired_starts_with_a_list_again(operator: Watched, space: Space) -> None:
    proxy = operator.proxy
    expired = proxy.fault(on("mcpservers", "watch"), Refuse(410, "Expired"), times=1)
    interrupt(proxy, Cut(), "mcpservers")
    until("refused", lambda: expired.hits)
    server = space.server("first")
    space.world.await_condition(server, "Ready", "True")
    space.world.await_event(server, "Ready", type_="Normal")
    assert len(space.world.containers_of(space.namespace)) == 1


def test_a_server_whose_deletion_nobody_saw_loses_its_container(arena: Arena, operator: Watched, space: Space) -> None:
    proxy = operator.proxy
    lost, kept = space.server("lost"), space.server("kept")
    orphan = space.connection("orphan", "lost")
    space.world.await_condition(orphan, "Ready", "True")
    space.world.await_condition(kept, "Ready", "True")
    container = space.world.status(kept)["container"]["id"]
    # The watches see nothing; finalizers are stripped by hand; then 410 makes them list again.
    interrupt(proxy, Silence(), "mcpservers", "agentmcpconnections")
    for target in (orphan, lost):
        path = path_of(target.kind, target.namespace, target.name)
        # Both in one request would do; a deletion first would have the operator's relist clean up in order.
        arena.api.merge(path, {"metadata": {"finalizers": None}})
        arena.api.request("DELETE", path)
    interrupt(proxy, GONE, "mcpservers", "agentmcpconnections")
    until("the container gone", lambda: space.world.containers_of(space.namespace), lambda left: left == [container])
    until("the grant gone", lambda: space.world.grants_of(space.namespace), lambda left: not left)
    until("rows closed", lambda: space.world.open_rows(space.namespace), lambda rows: len(rows) == 1)
    space.world.await_condition(kept, "Ready", "True")

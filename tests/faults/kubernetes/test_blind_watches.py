"""Watches that stall over an open connection, or fail for good: no process stays blind behind a green health check."""

from __future__ import annotations

import pytest

from support.poll import until
from support.proxies.faults import Fail, Silence
from support.system.arena import PATIENT_LEASE, Watched, interrupt, on
from support.system.space import Space

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def operator_arguments() -> tuple[str, ...]:
    return (*PATIENT_LEASE, "--timing=watch_fresh=8", "--timing=watch_missed=10")


def test_watches_that_stall_end_the_process_and_the_next_one_catches_up(operator: Watched, space: Space) -> None:
    replica, proxy, before = operator.replica, operator.proxy, len(operator.replica.exits)
    server = space.server("first")
    space.world.await_condition(server, "Ready", "True")
    container = space.world.status(server)["container"]["id"]
    interrupt(proxy, Silence())
    space.server("second")
    until("unwell", lambda: replica.probe("/healthz")[0], lambda status: status != 200)
    assert replica.await_exit(before + 1) == 1
    assert "the watch of our own Lease has delivered nothing" in replica.log
    connection = space.connection("bot", "second")
    space.world.await_condition(connection, "Ready", "True")
    found = space.world.containers_of(space.namespace)
    assert container in found
    assert len(found) == 2


def test_one_watch_that_stalls_is_made_up_for_by_lists_and_then_ends_the_process(
    operator: Watched, space: Space
) -> None:
    replica, before = operator.replica, len(operator.replica.exits)
    replica.await_leading()
    interrupt(operator.proxy, Silence(), "mcpservers")
    server = space.server("unseen")
    space.world.await_condition(server, "Ready", "True")
    assert replica.await_exit(before + 1) == 1
    assert "the watch of MCPServer missed a change" in replica.log
    replica.await_leading()
    space.world.patch(server, {"spec": {"state": "Stopped"}})
    space.world.await_status(server, phase="Stopped")
    assert len(replica.exits) == before + 1


def test_an_error_inside_a_watch_ends_the_process_at_once(operator: Watched, space: Space) -> None:
    replica, before = operator.replica, len(operator.replica.exits)
    server = space.server("first")
    space.world.await_condition(server, "Ready", "True")
    mark = operator.proxy.mark()
    interrupt(operator.proxy, Fail(500, "InternalError"), "mcpservers")
    assert replica.await_exit(before + 1) == 1
    space.world.patch(server, {"spec": {"state": "Stopped"}})
    space.world.await_status(server, phase="Stopped")
    assert operator.proxy.since(mark, on("mcpservers", "watch"))

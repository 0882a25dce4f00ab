"""The gateway's processes end, hang, or are away."""

from __future__ import annotations

import os
import signal

import pytest

from localstack.quickstart import Target
from support.poll import until
from support.system import rig
from support.system.space import SYSTEM, Space
from support.system.world import World

pytestmark = pytest.mark.faults

RIG = Target("Toolbox", SYSTEM, "tbx-rig")
LONG = {"seconds": 120}
"""A call that does not end by itself before the test is over."""


@pytest.fixture(scope="module")
def server(space: Space) -> Target:
    """One server for the connections of all tests."""
    found = rig.server(space, "served")
    rig.ready(space, found)
    return found


def gateway(world: World) -> int:
    child = world.stack.host.gateway
    assert child is not None
    return child.pid


def address(world: World, server: Target) -> str:
    found = rig.inspect(world, rig.container(world, server))
    assert found is not None
    networks = found["NetworkSettings"]["Networks"]
    return str(next(iter(networks.values()))["IPAddress"])


def test_a_killed_worker_is_replaced_and_its_calls_end_with_an_error(space: Space, server: Target) -> None:
    world, where = space.world, address(space.world, server)
    rig.ready(space, space.connection("one", "served"))
    secret, before = space.secret("one"), set(rig.workers(gateway(world)))
    assert len(before) == 2
    call = rig.Calling(secret, "echo", LONG)
    victim = until("relayed", lambda: call.worker(gateway(world), where))
    os.kill(victim, signal.SIGKILL)
    assert call.end() is not None
    assert world.refusal(secret, "echo", {}) is None
    # A dead worker is there until the supervisor takes notice.
    after = until(
        "two workers", lambda: set(rig.workers(gateway(world))), lambda seen: len(seen) == 2 and victim not in seen
    )
    assert len(after - before) == 1
    assert world.condition(server, "Ready")["status"] == "True"


def test_a_hung_worker_does_not_hold_up_a_revocation_and_the_other_serves_on(space: Space, server: Target) -> None:
    world, where = space.world, address(space.world, server)
    kept, closed = space.connection("kept", "served"), space.connection("closed", "served")
    rig.ready(space, kept, closed)
    open_, shut = space.secret("kept"), space.secret("closed")
    call = rig.Calling(shut, "echo", LONG)
    hung = until("relayed", lambda: call.worker(gateway(world), where))
    os.kill(hung, signal.SIGSTOP)
    world.patch(closed, {"spec": {"active": False}})
    world.await_condition(closed, "Programmed", "True")
    assert not rig.is_running(hung), "no ack counts while it may still serve"
    assert call.end() is not None
    assert world.refusal(shut, "echo", {}) is not None
    assert world.refusal(open_, "echo", {}) is None
    until("two workers", lambda: rig.workers(gateway(world)), lambda seen: len(seen) == 2)
    rig.ready(space, kept, server)


def test_status_says_that_the_gateway_is_down_and_nothing_stays_open_behind_it(space: Space, server: Target) -> None:
    world, host = space.world, space.world.stack.host
    names = ("stays", "inactive", "removed")
    stays, inactive, removed = (space.connection(name, "served") for name in names)
    rig.ready(space, stays, inactive, removed)
    secrets = {name: space.secret(name) for name in names}
    pids = rig.workers(gateway(world))
    os.kill(gateway(world), signal.SIGKILL)
    until("its workers end with it", lambda: [pid for pid in pids if rig.is_running(pid)], lambda left: not left)
    assert world.refusal(secrets["stays"], "echo", {}) is not None

    down = world.await_condition(RIG, "Ready", "False", "GatewayUnavailable")
    assert "gateway" in down["message"]
    world.await_event(RIG, "GatewayUnavailable")
    space.delete(removed)  # nobody is left who could accept it
    world.patch(inactive, {"spec": {"active": False}})
    pending = world.await_condition(inactive, "Programmed", "False", "RevocationPending")
    assert "no gateway worker" in pending["message"]

    host.start_gateway()
    rig.ready(space, RIG, stays, server)
    world.await_condition(inactive, "Programmed", "True")
    assert [world.refusal(secrets[name], "echo", {}) is None for name in names] == [True, False, False]

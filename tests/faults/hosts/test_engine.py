"""Docker on a host is restarted, stopped or hangs."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from support.hosts.far_toolbox import FarToolbox
from support.poll import until

pytestmark = pytest.mark.faults


def test_a_killed_docker_is_told_of_and_servers_converge_to_one_container_each(far: FarToolbox) -> None:
    first, second = far.ready_server("first"), far.ready_server("second")
    connection = far.ready_connection("bot", first)
    assert far.call(connection)
    far.host.engine.kill()
    condition = far.world.await_condition(first, "Ready", "False", "EngineUnavailable")
    assert "Docker" in condition["message"]
    far.world.await_status(first, phase="Unknown")
    far.world.await_event(first, "EngineUnavailable")
    toolbox = far.world.await_condition(far.target, "Ready", "False", "EngineUnavailable")
    assert "start Docker there" in toolbox["message"]
    assert far.world.condition(far.target, "Reachable")["status"] == "True"
    far.host.engine.start()
    for server in (first, second):
        far.world.await_condition(server, "Ready", "True")
        assert far.host.containers(far.instance(server), running_only=True) == [far.container(server)]
        assert far.host.containers(far.instance(server)) == [far.container(server)]
    far.world.await_condition(far.target, "Ready", "True")
    far.world.await_condition(connection, "Ready", "True")
    assert far.call(connection)
    jumps = [rule for rule in far.host.firewall() if rule.startswith(("-A INPUT", "-A DOCKER-USER")) and "MTB-" in rule]
    assert len(jumps) == 2


class Outside(socketserver.BaseRequestHandler):
    """Says where one is."""

    def handle(self) -> None:
        self.request.sendall(b"out\n")


@contextmanager
def outside(address: str) -> Generator[int]:
    """A port of this machine on the way to a host, which is private to that host."""
    with socketserver.ThreadingTCPServer((address, 0), Outside) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_what_servers_reach_outlasts_docker_and_is_what_the_spec_says(far: FarToolbox) -> None:
    address = str(far.host.link.subnet[1])
    servers = {
        "None": far.ready_server("none", security={"egress": "None"}),
        "Internet": far.ready_server("internet"),
        "All": far.ready_server("all", security={"egress": "All"}),
    }

    def assert_reaching(port: int, expected: str) -> None:
        """Only the container of this server reaches the port, for which it has the time that a busy machine needs."""
        for egress, server in servers.items():
            shell = f"nc -w {30 if egress == expected else 2} {address} {port} </dev/null 2>&1; true"
            words = far.host.engine.docker("exec", far.container(server), "sh", "-c", shell).strip()
            reached = words == "out"
            assert reached or words.startswith(("nc: can't connect", "nc: timed out")), (egress, words)
            assert reached == (egress == expected), (egress, words)

    with outside(address) as port:
        assert_reaching(port, "All")
        far.host.engine.kill()
        far.world.await_condition(far.target, "Ready", "False", "EngineUnavailable")
        far.host.engine.start()
        for server in servers.values():
            far.world.await_condition(server, "Ready", "True")
        assert_reaching(port, "All")
        far.world.patch(servers["All"], {"spec": {"security": {"egress": "None"}}})
        far.world.patch(servers["None"], {"spec": {"security": {"egress": "All"}}})
        for server in servers.values():
            far.world.await_condition(server, "Ready", "True")
        # By the names they had at first.
        assert_reaching(port, "None")


def test_a_stopped_docker_holds_up_its_own_host_only(far: FarToolbox) -> None:
    server, leaving = far.ready_server("time"), far.ready_server("leaving")
    elsewhere = far.space.server("elsewhere")
    far.world.await_condition(elsewhere, "Ready", "True")
    other = far.space.connection("other", "elsewhere")
    far.world.await_condition(other, "Ready", "True")
    since = far.world.condition(elsewhere, "Ready")["lastTransitionTime"]
    far.host.engine.stop()
    far.world.await_condition(server, "Ready", "False", "EngineUnavailable")
    far.space.delete(leaving, wait=False)
    blocked = far.world.await_condition(leaving, "Ready", "False", "CleanupBlocked")
    assert "start Docker" in blocked["message"] and "magictoolbox.dev/abandon" in blocked["message"]
    far.world.await_event(leaving, "CleanupBlocked")
    assert far.call(other)
    assert far.world.condition(elsewhere, "Ready")["lastTransitionTime"] == since
    far.host.engine.start()
    far.world.await_condition(server, "Ready", "True")
    until("gone", lambda: far.world.find(leaving), lambda found: found is None, seconds=60)
    assert far.host.containers(running_only=True) == [far.container(server)]


def test_a_hung_docker_is_told_of_while_agents_keep_working(far: FarToolbox) -> None:
    server = far.ready_server("time")
    connection = far.ready_connection("bot", server)
    before = far.container(server)
    far.host.engine.hang()
    condition = far.world.await_condition(server, "Ready", "False", "EngineUnavailable", seconds=90)
    assert "Docker" in condition["message"]
    far.world.await_condition(far.target, "Ready", "False", "EngineUnavailable", seconds=90)
    assert far.call(connection) == before, "the container and the gateway run on"
    far.host.engine.go_on()
    far.world.await_condition(server, "Ready", "True", seconds=90)
    far.world.await_condition(far.target, "Ready", "True")
    assert far.container(server) == before
    assert far.call(connection) == before


def test_a_rebooted_host_converges_without_the_operator(far: FarToolbox) -> None:
    server = far.ready_server("time")
    connection = far.ready_connection("bot", server)
    before = far.container(server)
    operator = far.world.stack.operator
    assert operator.child is not None
    operator.child.kill()
    try:
        far.host.power_off()
        assert far.refusal(connection) is not None
        far.host.restore()
        until("served", lambda: far.refusal(connection), lambda refused: refused is None, seconds=60)
        assert far.call(connection) == before
        assert far.host.containers(running_only=True) == [before]
        assert any("MTB-" in rule for rule in far.host.firewall())
    finally:
        operator.start()
    far.world.await_condition(far.target, "Ready", "True")
    far.world.await_condition(server, "Ready", "True")
    far.world.await_condition(connection, "Ready", "True")

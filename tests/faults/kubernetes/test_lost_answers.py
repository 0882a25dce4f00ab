"""Writes that Kubernetes took but whose answer was lost, and writes that failed: done once, and known."""

from __future__ import annotations

import json

import pytest

from localstack.quickstart import Target
from support.poll import until
from support.proxies.faults import Lose, Refuse, Truncate
from support.system.arena import PATIENT_LEASE, Arena, Watched, on
from support.system.space import Space

pytestmark = pytest.mark.faults

STATUS = "status"


@pytest.fixture(scope="module")
def operator_arguments() -> tuple[str, ...]:
    return PATIENT_LEASE


def single_token(arena: Arena, space: Space, connection: str) -> str:
    """The connection's token, after a look that the one Secret and the one grant agree on it."""
    found = arena.api.request("GET", f"/api/v1/namespaces/{space.namespace}/secrets")["items"]
    assert [item["metadata"]["name"] for item in found if item["type"] == "Opaque"] == [f"{connection}-mcp"]
    secret = space.secret(connection)
    assert space.world.refusal(secret, "echo", {}) is None
    [grant] = space.world.grants_of(space.namespace)
    folder = space.world.stack.host.state_dir / "grants"
    assert len(json.loads((folder / grant).read_text())["grant"]["credentials"]) == 1
    return secret["token"]


def test_a_write_whose_answer_is_lost_is_done_once(arena: Arena, operator: Watched, space: Space) -> None:
    before = arena.api.lease()
    proxy = operator.proxy
    lost = {
        "finalizer of the server": proxy.fault(on("mcpservers", "patch"), Lose(), times=1),
        "status of the server": proxy.fault(on("mcpservers", "replace", subresource=STATUS), Lose(), times=1),
        "finalizer of the connection": proxy.fault(on("agentmcpconnections", "patch"), Lose(), times=1),
        "status of the connection": proxy.fault(on("agentmcpconnections", "replace"), Lose(), times=1),
        "Secret": proxy.fault(on("secrets", "create"), Lose(), times=1),
        "Event": proxy.fault(on("events", "create"), Lose(), times=1),
        "Lease": proxy.fault(on("leases", "replace"), Lose(), times=1),
    }
    server = space.server("quiet")
    connection = space.connection("bot", "quiet")
    space.world.await_condition(connection, "Ready", "True")
    assert {what for what, fault in lost.items() if not fault.hits} == set()
    assert len(space.world.containers_of(space.namespace)) == 1
    first = single_token(arena, space, "bot")

    # The same for the writes of an end: the finalizers' removal, and for those of a new beginning.
    released = [
        proxy.fault(on(resource, "patch"), Lose(), times=1) for resource in ("mcpservers", "agentmcpconnections")
    ]
    space.delete(connection)
    space.delete(server)
    assert [fault.hits for fault in released] == [1, 1]
    space.server("quiet")
    space.connection("bot", "quiet")
    space.world.await_condition(connection, "Ready", "True")
    assert single_token(arena, space, "bot") != first
    after = arena.api.lease()
    assert (after["holderIdentity"], after["leaseTransitions"]) == (
        before["holderIdentity"],
        before["leaseTransitions"],
    )
    assert operator.replica.exits == []


def test_a_rotation_whose_writes_are_lost_ends_with_one_new_token(
    arena: Arena, operator: Watched, space: Space
) -> None:
    space.server("quiet")
    connection = space.connection("bot", "quiet")
    space.world.await_condition(connection, "Ready", "True")
    old = space.secret("bot")
    lost = operator.proxy.fault(on("secrets", "patch"), Lose(), times=2)
    space.world.patch(connection, {"metadata": {"annotations": {"magictoolbox.dev/rotate": "now"}}})
    new = until("another token", lambda: space.secret("bot"), lambda secret: secret["token"] != old["token"])
    assert lost.hits == 2
    assert space.world.refusal(new, "echo", {}) is None
    assert space.world.refusal(old, "echo", {}) is None, "the replaced one is good for ten minutes"
    space.world.await_condition(connection, "Ready", "True")
    assert "token-next" not in space.secret("bot")
    assert space.secret("bot")["token"] == new["token"], "rotated once, not once per attempt"


def test_status_appears_although_its_writes_fail_three_times(operator: Watched, space: Space) -> None:
    refused = [
        operator.proxy.fault(on(resource, "replace", subresource=STATUS), Refuse(500, "InternalError"), times=3)
        for resource in ("mcpservers", "agentmcpconnections")
    ]
    server = space.server("quiet")
    connection = space.connection("bot", "quiet")
    space.world.await_condition(connection, "Ready", "True")
    space.world.await_condition(server, "Ready", "True")
    space.world.await_event(server, "Ready", type_="Normal")
    assert [fault.hits for fault in refused] == [3, 3]
    assert len(space.world.containers_of(space.namespace)) == 1


def test_an_answer_that_ends_in_the_middle_means_unknown(arena: Arena, operator: Watched, space: Space) -> None:
    server = space.server("quiet")
    connection = space.connection("bot", "quiet")
    space.world.await_condition(connection, "Ready", "True")
    container = space.world.status(server)["container"]["id"]
    # Everything that a resync asks for, for as long as two of them: lists of each kind, and Secrets.
    cut = [
        operator.proxy.fault(on(resource, "list"), Truncate())
        for resource in ("toolboxes", "mcpservers", "agentmcpconnections")
    ]
    secrets = operator.proxy.fault(on("secrets", "get"), Truncate())
    until("a cut list", lambda: cut[0].hits, lambda hits: hits >= 2)
    space.world.patch(connection, {"metadata": {"annotations": {"example.com/touched": "yes"}}})
    until("a cut Secret", lambda: secrets.hits, lambda hits: hits >= 2)
    assert space.world.containers_of(space.namespace) == [container]
    assert space.world.refusal(space.secret("bot"), "echo", {}) is None
    operator.proxy.remove(*cut, secrets)
    later = Target("MCPServer", space.namespace, "later")
    space.server("later")
    space.world.await_condition(later, "Ready", "True")
    assert space.world.status(server)["container"]["id"] == container
    assert operator.replica.exits == []

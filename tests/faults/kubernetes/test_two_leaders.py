"""A leader that is stopped in the middle of its work, and goes on when another has taken over: it changes nothing.

What it had sent before is held on its way and arrives late, at Kubernetes, at the host, at PostgreSQL: one write of
each sort, each about an object of its own, so that one pause serves them all.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass

import pytest

from localstack.quickstart import Target
from support import manifests
from support.kubernetes.api import path_of
from support.poll import until
from support.proxies.faults import Exchange, Fault, Hold, Match, Request
from support.system.arena import Arena, namespace, on
from support.system.pair import Candidate, Pair, of_epoch
from support.system.space import Space

pytestmark = pytest.mark.faults

GRANTS, INSTANCES = "/v2/grants/", "/v2/instances/"
CONNECTIONS = ("status", "grant", "secret", "gone")
NARROWED = {"spec": {"expose": {"tools": {"allow": ["echo"], "deny": []}}}}


def naming(match: Match, name: str) -> Match:
    """Requests whose body is about an object of this name."""

    def matches(request: Request) -> bool:
        if not match(request):
            return False
        body = request.document
        return name in (body.get("name"), body.get("metadata", {}).get("name"))

    return matches


@dataclass(frozen=True, slots=True)
class Held:
    """A fault that holds, and what it holds."""

    fault: Fault
    match: Match

    @classmethod
    def by(cls, pair: Pair, proxy_of: Candidate | None, match: Match) -> Held:
        """At a candidate's way to Kubernetes, or at the way of all to the host."""
        proxy = proxy_of.proxy if proxy_of is not None else pair.arena.host_proxy
        return cls(proxy.fault(match, Hold()), match)


@dataclass(frozen=True, slots=True)
class Aftermath:
    """The world after the pause: what arrived late, by the object it was about, and who was stopped."""

    space: Space
    pair: Pair
    stopped: Candidate
    late: dict[str, list[Exchange]]
    epochs: tuple[int, int]
    """Before and after."""
    secrets: dict[str, dict[str, str]]
    """Of connections, as they were before it went on."""
    container: str
    """Of the server that was made again under the name of one whose removal came late."""
    woken: tuple[int, int]
    """Marks in the journals of its own proxy and the host's, of the moment before it went on."""


def connection_of(space: Space, name: str) -> Target:
    return Target("AgentMCPConnection", space.namespace, name)


def server_of(space: Space, name: str) -> Target:
    return Target("MCPServer", space.namespace, name)


def prepare(space: Space) -> None:
    """Three servers and two connections, all Ready."""
    space.apply(
        *(manifests.quick_server(space.namespace, name, space.image) for name in ("quiet", "updated", "removed")),
        *(manifests.connection(space.namespace, name, "quiet") for name in CONNECTIONS[:2]),
    )
    for name in ("quiet", "updated", "removed"):
        space.world.await_condition(server_of(space, name), "Ready", "True")
    for name in CONNECTIONS[:2]:
        space.world.await_condition(connection_of(space, name), "Ready", "True")


def hold_one_of_each(space: Space, pair: Pair, leader: Candidate) -> dict[str, Held]:
    """Have the leader write something of every sort, and hold it all."""
    creates, epoch = on("secrets", "create", namespace=space.namespace), pair.epoch
    held = {
        "status": Held.by(pair, leader, on("agentmcpconnections", "replace", name="status")),
        "secret": Held.by(pair, leader, naming(creates, "secret-mcp")),
        "gone": Held.by(pair, leader, naming(creates, "gone-mcp")),
        "grant": Held.by(pair, None, naming(of_epoch(epoch, "PUT", GRANTS), "grant")),
        "updated": Held.by(pair, None, naming(of_epoch(epoch, "PUT", INSTANCES), "updated")),
        "removed": Held.by(pair, None, of_epoch(epoch, "DELETE", INSTANCES)),
    }
    frozen = leader.sql.freeze_when(lambda data: b"BEGIN" in data)
    for name in ("status", "grant"):
        space.world.patch(connection_of(space, name), NARROWED)
    space.world.patch(server_of(space, "updated"), {"spec": {"env": [{"name": "VERSION", "value": "2"}]}})
    space.delete(server_of(space, "removed"), wait=False)
    for name in ("secret", "gone"):
        space.connection(name, "quiet")
    for name, one in held.items():
        assert one.fault.met.wait(60), f"the leader never wrote {name}"
    assert frozen.wait(60)
    return held


def change_everything(space: Space, pair: Pair) -> None:
    """What people do while the other one leads."""
    api, world = pair.arena.api, space.world
    for name in ("status", "grant"):
        world.patch(connection_of(space, name), {"spec": {"active": False}})
    space.delete(server_of(space, "updated"))
    for name in ("secret", "gone"):
        world.await_condition(connection_of(space, name), "Ready", "True")
    space.delete(connection_of(space, "gone"))
    path = path_of("MCPServer", space.namespace, "removed")
    until("removed", lambda: api.find(path), lambda found: found is None)
    space.server("removed")
    world.await_condition(server_of(space, "removed"), "Ready", "True")
    for name in ("status", "grant"):
        world.await_status(connection_of(space, name), phase="Disconnected")
    orphan = f"/api/v1/namespaces/{space.namespace}/secrets/gone-mcp"
    until("the Secret collected", lambda: api.find(orphan), lambda found: found is None)
    until("newer rows", lambda: epochs_of_rows(space), lambda epochs: epochs == {pair.epoch})


@pytest.fixture(scope="module")
def aftermath(arena: Arena, shared_pair: Pair) -> Generator[Aftermath]:
    """The leader is stopped while it writes; everything changes; what it wrote arrives; it goes on."""
    pair = shared_pair
    with namespace(arena) as space:
        try:
            prepare(space)
            leader, standby = pair.roles()
            before, mark, host_mark = pair.epoch, leader.proxy.mark(), arena.host_proxy.mark()
            held = hold_one_of_each(space, pair, leader)
            pair.take_over(leader, standby)
            change_everything(space, pair)
            secrets = {name: space.secret(name) for name in ("status", "grant", "secret")}
            container = str(space.world.status(server_of(space, "removed"))["container"]["id"])
            late: dict[str, list[Exchange]] = {}
            for name, one in held.items():
                journal = (leader.proxy.since(mark), arena.host_proxy.since(host_mark))
                late[name] = [exchange for part in journal for exchange in part if one.match(exchange.request)]
                one.fault.release()
                what = f"the late write of {name} has arrived"
                until(what, lambda n=name: [e for e in late[n] if e.answered is None], lambda rest: not rest)
            leader.sql.thaw()
            woken = leader.proxy.mark(), arena.host_proxy.mark()
            pair.wake(leader)
            epochs = before, pair.epoch
            yield Aftermath(space, pair, leader, late, epochs, secrets, container, woken)
        finally:
            pair.clear()


def epochs_of_rows(space: Space) -> set[int]:
    """Epochs of the namespace's open rows."""
    where = f"namespace = '{space.namespace}' AND deleted_at IS NULL"
    selects = [
        f"SELECT epoch FROM {table} WHERE {where}"  # noqa: S608 - names of our own
        for table in ("account_tool_instances", "agent_mcp_connections")
    ]
    return {int(epoch) for (epoch,) in space.world.rows(" UNION ".join(selects))}


def assert_fenced(aftermath: Aftermath, name: str) -> None:
    """The host refused it because it knows a newer leader."""
    assert aftermath.late[name]
    for exchange in aftermath.late[name]:
        assert exchange.answered == 409
        problem = json.loads(exchange.problem)
        assert (problem["code"], problem["current"]) == ("FencedEpoch", aftermath.epochs[1])


def test_of_two_that_start_at_the_same_time_exactly_one_leads(pair: Pair, pair_space: Space) -> None:
    leader, standby = pair.roles()
    pair_space.server("quiet")
    connection = pair_space.connection("bot", "quiet")
    pair_space.world.await_condition(connection, "Ready", "True")
    assert not standby.replica.leads
    assert leader.replica.exits == standby.replica.exits == []
    assert [e for e in standby.proxy.journal if e.request.writes and e.answered not in (None, 409)] == []


def test_a_late_status_is_refused(aftermath: Aftermath) -> None:
    assert {exchange.answered for exchange in aftermath.late["status"]} == {409}
    space = aftermath.space
    assert space.world.status(connection_of(space, "status"))["phase"] == "Disconnected"
    assert space.world.refusal(aftermath.secrets["status"], "echo", {}) is not None


def test_a_late_secret_replaces_no_token(aftermath: Aftermath) -> None:
    assert {exchange.answered for exchange in aftermath.late["secret"]} == {409}
    space = aftermath.space
    assert space.secret("secret") == aftermath.secrets["secret"]
    assert space.world.refusal(aftermath.secrets["secret"], "echo", {}) is None


def test_a_secret_that_arrives_after_its_connection_is_gone_opens_nothing(aftermath: Aftermath) -> None:
    assert aftermath.late["gone"]
    space, api = aftermath.space, aftermath.pair.arena.api
    path = f"/api/v1/namespaces/{space.namespace}/secrets/gone-mcp"
    # It names an owner that is gone: the garbage collector takes it away.
    until("collected", lambda: api.find(path), lambda found: found is None, seconds=60)
    assert len(space.world.grants_of(space.namespace)) == len(CONNECTIONS) - 1


def test_a_late_grant_stays_revoked(aftermath: Aftermath) -> None:
    assert_fenced(aftermath, "grant")
    space = aftermath.space
    assert space.world.refusal(aftermath.secrets["grant"], "echo", {}) is not None
    folder = space.world.stack.host.state_dir / "grants"
    kept = [json.loads((folder / name).read_text())["grant"] for name in space.world.grants_of(space.namespace)]
    credentials = {grant["name"]: len(grant["credentials"]) for grant in kept}
    assert credentials == {"status": 0, "grant": 0, "secret": 1}
    assert space.world.status(connection_of(space, "grant"))["phase"] == "Disconnected"


def test_an_instance_that_arrives_after_its_deletion_stays_deleted(aftermath: Aftermath) -> None:
    assert_fenced(aftermath, "updated")
    space = aftermath.space
    assert space.world.find(server_of(space, "updated")) is None
    assert len(space.world.containers_of(space.namespace)) == 2


def test_a_late_removal_does_not_hit_the_next_server_of_that_name(aftermath: Aftermath) -> None:
    assert_fenced(aftermath, "removed")
    space = aftermath.space
    assert aftermath.container in space.world.containers_of(space.namespace)
    space.world.await_condition(server_of(space, "removed"), "Ready", "True")


def test_late_rows_replace_no_newer_ones(aftermath: Aftermath) -> None:
    assert epochs_of_rows(aftermath.space) == {aftermath.epochs[1]}
    names = {name for _, name in aftermath.space.world.open_rows(aftermath.space.namespace)}
    assert names == {"quiet", "removed", "status", "grant", "secret"}


def test_the_stopped_leader_ends_and_writes_nothing_more(aftermath: Aftermath) -> None:
    stopped, arena = aftermath.stopped, aftermath.pair.arena
    assert stopped.replica.exits == [1]
    own, host = aftermath.woken
    taken = [e for e in stopped.proxy.since(own) if e.request.writes and e.answered not in (None, 409)]
    # One Secret that it was just about to create, of a connection that is gone: see the test of what arrives late.
    created = [e.request.document["metadata"]["name"] for e in taken if e.request.method == "POST"]
    assert created in ([], ["gone-mcp"]) and len(taken) == len(created)
    space, api = aftermath.space, arena.api
    path = f"/api/v1/namespaces/{space.namespace}/secrets/gone-mcp"
    until("collected", lambda: api.find(path), lambda found: found is None, seconds=60)
    before, _ = aftermath.epochs
    assert [e for e in arena.host_proxy.since(host, of_epoch(before, "PUT", "/v2/")) if e.answered != 409] == []
    assert [e for e in arena.host_proxy.since(host, of_epoch(before, "DELETE", "/v2/")) if e.answered != 409] == []


def test_a_transaction_that_a_stopped_leader_left_open_holds_up_the_next_one_only_for_a_while(
    pair: Pair, pair_space: Space
) -> None:
    def row() -> tuple[object, ...]:
        where = f"namespace = '{pair_space.namespace}' AND deleted_at IS NULL"
        query = f"SELECT spec_generation, epoch, status_on_toolbox FROM account_tool_instances WHERE {where}"  # noqa: S608 - our own
        return pair_space.world.rows(query)[0]

    server = pair_space.server("quiet")
    pair_space.world.await_condition(server, "Ready", "True")
    until("in the record", lambda: pair_space.world.open_rows(pair_space.namespace))
    until("active", lambda: row()[2], lambda status: status == "active")
    leader, standby = pair.roles()
    frozen = leader.sql.freeze_when(lambda data: b"COMMIT" in data)
    pair_space.world.patch(server, {"spec": {"state": "Stopped"}})
    assert frozen.wait(60)
    pair.take_over(leader, standby)
    pair_space.world.patch(server, {"spec": {"state": "Running"}})
    pair_space.world.await_condition(server, "Ready", "True")
    # PostgreSQL ends a transaction that is idle for 10 seconds, and with it its locks.
    newest = (3, pair.epoch, "active")
    until("the newer row", row, lambda found: found == newest, seconds=60)
    leader.sql.thaw()
    pair.wake(leader)
    assert row() == newest

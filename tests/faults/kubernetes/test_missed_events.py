"""Every event of a create, an update and a delete is hidden once, each in turn, from an operator that goes on.

Each object of a row has one event of its life hidden: the first, the second, and so on, to one whose life ends
before its turn comes. All live side by side, with one that nothing is hidden from: what they come to must be the same.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from localstack.host import Host, Settings
from localstack.processes import Supervisor
from localstack.quickstart import Target
from support import manifests
from support.conditions import check_conditions
from support.hosts.state_files import records_in
from support.kubernetes.api import path_of
from support.poll import until
from support.proxies.api_proxy import ApiProxy
from support.proxies.faults import Event, Hide, StreamFault
from support.system.arena import Arena, Watched, namespace
from support.system.space import SYSTEM, Space, toolbox_documents

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

SERVERS, CONNECTIONS, SECRETS, TOOLBOXES = 22, 26, 14, 30
"""Events hidden, at most; more than a life has, also on a slow machine, where there is more to tell."""
CALM = "calm"
"""The object that nothing is hidden from."""
SECONDS = 120.0
_OWN = frozenset({"lastTransitionTime", "message", "observedGeneration"})
_NAMES = {"instanceId", "endpoint", "connectionId", "secretName", "container"}
_PARTICULAR = _NAMES | {"connections", "observedGeneration", "conditions", "resolved"}


@pytest.fixture(scope="module")
def operator_arguments() -> tuple[str, ...]:
    return ("--timing=resync=3",)


@pytest.fixture
def space(arena: Arena, operator: Watched) -> Generator[Space]:
    with namespace(arena) as found:
        yield found


@dataclass(slots=True)
class Row:
    """Objects of one kind, by name, with what is hidden of each."""

    resource: str
    faults: dict[str, StreamFault] = field(default_factory=dict[str, StreamFault])

    def hide(self, proxy: ApiProxy, prefix: str, count: int, suffix: str = "") -> list[str]:
        """Names of the objects; of the nth the nth event will be hidden, and of one more its deletion."""
        for number in range(count):
            name = f"{prefix}-{number:02}"
            self.hide_event(proxy, name, f"{name}{suffix}", number)
        self.hide_event(proxy, f"{prefix}-gone", f"{prefix}-gone{suffix}", 0, "DELETED")
        return list(self.faults)

    def hide_event(self, proxy: ApiProxy, name: str, watched: str, number: int, *types: str) -> StreamFault:
        """Hides one event of an object, counted from 0; only of these types, if any are given."""

        def matches(event: Event) -> bool:
            wanted = event.type in types if types else event.type != "BOOKMARK"
            # What is watched of all Secrets tells of a connection's nothing that its own watch does not.
            wanted = wanted and event.object.get("kind") != "PartialObjectMetadata"
            return wanted and event.resource == self.resource and event.name == watched

        self.faults[name] = proxy.stream_fault(matches, Hide(), skip=number)
        return self.faults[name]

    def check(self, *types: str) -> None:
        """Every type of event was hidden, and every event of a life."""
        hidden = {fault.hit[0].type for fault in self.faults.values() if fault.hit}
        assert hidden == set(types), f"{self.resource}: {hidden}"
        spared = [name for name, fault in self.faults.items() if not fault.hit]
        assert spared, f"{self.resource}: lives are longer than the test expects; raise the number of objects"


def plain_conditions(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in condition.items() if k not in _OWN} for condition in status.get("conditions", [])]


def listed(arena: Arena, kind: str, space: str) -> dict[str, dict[str, Any]]:
    """Objects of a namespace by name, their conditions checked."""
    items = arena.api.request("GET", path_of(kind, space))["items"]
    for item in items:
        check_conditions({**item, "kind": kind})
    return {item["metadata"]["name"]: item for item in items}


def records(folder: Path, part: str, space: str) -> dict[str, dict[str, Any]]:
    """What the host keeps for a namespace, by object name."""
    kept = [record[part] for record in records_in(folder).values()]
    return {each["name"]: each for each in kept if each["namespace"] == space}


def pictures(arena: Arena, space: Space) -> dict[str, dict[str, object]]:
    """Everything there is of each server and connection, without what differs from object to object."""
    world, state = arena.world, arena.world.stack.host.state_dir
    found: dict[str, dict[str, object]] = defaultdict(dict)
    secrets = {
        item["metadata"]["name"].removesuffix("-mcp"): item["data"]
        for item in arena.api.request("GET", f"/api/v1/namespaces/{space.namespace}/secrets")["items"]
        if item["type"] == "Opaque"
    }
    for kind in ("MCPServer", "AgentMCPConnection"):
        for name, body in listed(arena, kind, space.namespace).items():
            status = body.get("status", {})
            found[name]["current"] = status.get("observedGeneration") == body["metadata"]["generation"]
            found[name]["status"] = {k: v for k, v in status.items() if k not in _PARTICULAR}
            found[name]["resolved"] = {k: v for k, v in status.get("resolved", {}).items() if k not in _PARTICULAR}
            found[name]["conditions"] = plain_conditions(status)
            found[name]["deleting"] = "deletionTimestamp" in body["metadata"]
            found[name]["finalizers"] = body["metadata"].get("finalizers")
    for name, desired in records(state / "instances", "desired", space.namespace).items():
        found[name]["desired"] = {k: v for k, v in desired.items() if k not in ("uid", "name", "generation")}
    for name, grant in records(state / "grants", "grant", space.namespace).items():
        hashes = {credential["value"] for credential in grant["credentials"]}
        found[name]["grant"] = {"expose": grant["expose"], "expires": grant["expiresAt"], "hashes": len(hashes)}
        token = b64decode(secrets.get(name, {}).get("token", "")).decode()
        found[name]["accepts"] = hashlib.sha256(token.encode()).hexdigest() in hashes
    for name, data in secrets.items():
        found[name]["secret"] = sorted(data)
    rows = world.rows(
        f"""SELECT name, status_on_toolbox, deleted_at IS NULL, delete_reason FROM account_tool_instances
            WHERE namespace = '{space.namespace}' UNION ALL
            SELECT name, connection_status, deleted_at IS NULL, delete_reason FROM agent_mcp_connections
            WHERE namespace = '{space.namespace}'"""  # noqa: S608 - a name of our own
    )
    for name, *row in rows:
        found[str(name)]["row"] = tuple(row)
    return found


def settle(arena: Arena, space: Space, groups: dict[str, list[str]], what: str, **calm: object) -> None:
    """Until those of each group look like the one that nothing is hidden from, which is as `calm` says."""

    def differences() -> list[str]:
        found = pictures(arena, space)
        wrong = [
            f"{base}: {part} is {found[base].get(part)}"
            for base in groups
            for part, value in calm.items()
            if found[base].get(part) != value
        ]
        for base, names in groups.items():
            for name in names:
                other, own = found[base], found[name]
                wrong += [
                    f"{name}: {part} is {own.get(part)}, not {other.get(part)}"
                    for part in other.keys() | own.keys()
                    if own.get(part) != other.get(part)
                ]
        return wrong

    until(what, differences, lambda wrong: not wrong, seconds=SECONDS)


def test_any_one_event_of_servers_connections_and_secrets_may_be_missed(
    arena: Arena, operator: Watched, space: Space
) -> None:
    servers, connections, secrets = Row("mcpservers"), Row("agentmcpconnections"), Row("secrets")
    server_names = servers.hide(operator.proxy, "s", SERVERS)
    connection_names = connections.hide(operator.proxy, "c", CONNECTIONS)
    secret_names = secrets.hide(operator.proxy, "k", SECRETS, "-mcp")
    to_server = [f"bot-{CALM}", *connection_names, *secret_names]
    groups = {CALM: server_names, f"bot-{CALM}": [*connection_names, *secret_names]}

    space.apply(
        *(manifests.quick_server(space.namespace, name, space.image) for name in (CALM, *server_names)),
        *(manifests.connection(space.namespace, name, CALM) for name in to_server),
    )
    space.world.await_condition(
        Target("AgentMCPConnection", space.namespace, f"bot-{CALM}"), "Ready", "True", seconds=90
    )
    settle(arena, space, groups, "created", current=True, deleting=False)
    containers = sorted(space.world.containers_of(space.namespace))
    assert len(containers) == len(server_names) + 1
    tokens = {name: space.secret(name)["token"] for name in (f"bot-{CALM}", "k-00")}

    expose = {"tools": {"allow": ["echo"], "deny": []}}
    for name in (CALM, *server_names):
        arena.api.merge(path_of("MCPServer", space.namespace, name), {"spec": {"expose": expose}})
    rotate = {"metadata": {"annotations": {"magictoolbox.dev/rotate": "1"}}, "spec": {"expose": expose}}
    for name in to_server:
        arena.api.merge(path_of("AgentMCPConnection", space.namespace, name), rotate)

    def rotated() -> bool:
        return all(space.secret(name)["token"] != token for name, token in tokens.items())

    until("rotated", rotated)
    settle(arena, space, groups, "updated", current=True, deleting=False)
    assert sorted(space.world.containers_of(space.namespace)) == containers, "an edit of `expose` replaces nothing"
    tokens = {name: space.secret(name)["token"] for name in tokens}

    for name in to_server:
        arena.api.request("DELETE", f"/api/v1/namespaces/{space.namespace}/secrets/{name}-mcp")
    until(
        "new Secrets", lambda: {name for name in tokens if f"{name}-mcp" in opaque(arena, space)}, tokens.keys().__eq__
    )
    settle(arena, space, groups, "new Secrets", current=True, deleting=False)
    with_grants = {base: names for base, names in groups.items() if base != CALM}
    settle(arena, space, with_grants, "the new tokens accepted", accepts=True)
    assert all(space.secret(name)["token"] != token for name, token in tokens.items())

    for kind, names in (("AgentMCPConnection", to_server), ("MCPServer", [CALM, *server_names])):
        for name in names:
            arena.api.request("DELETE", path_of(kind, space.namespace, name))

    def left() -> list[str]:
        found = pictures(arena, space)
        return [f"{name}: {picture}" for name, picture in found.items() if picture.keys() != {"row"}]

    until("deleted", left, lambda rest: not rest, seconds=SECONDS)
    until(
        "rows closed as deleted",
        lambda: {row["row"][1:] for row in cast("list[Any]", list(pictures(arena, space).values()))},
        lambda seen: seen == {(False, "deleted")},
    )
    servers.check("ADDED", "MODIFIED", "DELETED")
    connections.check("ADDED", "MODIFIED", "DELETED")
    secrets.check("ADDED", "MODIFIED", "DELETED")


def opaque(arena: Arena, space: Space) -> list[str]:
    """Names of the namespace's Secrets that are ours."""
    found = arena.api.request("GET", f"/api/v1/namespaces/{space.namespace}/secrets")["items"]
    return [item["metadata"]["name"] for item in found if item["type"] == "Opaque"]


@pytest.fixture(scope="module")
def second_host(supervisor: Supervisor, arena: Arena) -> Host:
    """Another host, for Toolboxes that come and go."""
    host = Host(supervisor, arena.folder / "host-2", Settings(name="tbx-2"))
    host.start()
    return host


def test_any_one_event_of_a_toolbox_may_be_missed(arena: Arena, operator: Watched, second_host: Host) -> None:
    toolboxes = Row("toolboxes")
    printed = toolbox_documents(second_host.manifests)
    cluster = arena.world.stack.parts.cluster
    cluster.apply([document for document in printed if document["kind"] != "Toolbox"])
    [toolbox] = [document for document in printed if document["kind"] == "Toolbox"]

    def live(name: str) -> None:
        cluster.apply([{**toolbox, "metadata": {"name": name, "namespace": SYSTEM}}])
        target = Target("Toolbox", SYSTEM, name)
        arena.world.await_condition(target, "Ready", "True")
        assert arena.world.status(target)["hostId"] == second_host.host_id
        arena.world.patch(target, {"spec": {"leaseDuration": "30s"}})
        arena.world.await_status(target, observedGeneration=2)
        arena.world.await_condition(target, "Ready", "True")
        cluster.kubectl("delete", target.resource, "-n", SYSTEM, "--timeout=60s", seconds=75)
        query = f"SELECT delete_reason FROM account_tool_environments WHERE name = '{name}'"  # noqa: S608 - our own
        until(f"{name} closed", lambda: arena.world.rows(query), lambda rows: rows == [("deleted",)])

    toolboxes.hide_event(operator.proxy, "t-gone", "t-gone", 0, "DELETED")
    live("t-gone")
    for number in range(TOOLBOXES):
        name = f"t-{number:02}"
        fault = toolboxes.hide_event(operator.proxy, name, name, number)
        live(name)
        if not fault.hit:
            break  # Its life was over before its turn came: every event of a life was hidden once.
    toolboxes.check("ADDED", "MODIFIED", "DELETED")
    assert arena.world.find(Target("Toolbox", SYSTEM, "tbx-1")) is not None

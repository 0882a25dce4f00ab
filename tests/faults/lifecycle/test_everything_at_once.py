"""`kubectl delete -f` of a whole installation, Secrets and namespaces included, in any order; on its own host."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Generator
from typing import Any

import pytest
import yaml

from localstack.kubernetes import Manifest
from localstack.quickstart import Target
from support import manifests
from support.hosts.spare_host import SpareHost
from support.poll import until
from support.system.world import World

pytestmark = pytest.mark.faults

SERVERS = ("one", "two", "three")
Order = Callable[[list[Manifest]], list[Manifest]]


def as_written(documents: list[Manifest]) -> list[Manifest]:
    return documents


def backwards(documents: list[Manifest]) -> list[Manifest]:
    return documents[::-1]


def shuffled(documents: list[Manifest]) -> list[Manifest]:
    # Any order must do; a fixed seed makes a failure come back.
    return random.Random(7).sample(documents, len(documents))


class Installation:
    """Two namespaces: one with the Toolbox, its Secret and its servers, one with a team's connections."""

    def __init__(self, world: World, host: SpareHost) -> None:
        tag = secrets.token_hex(3)
        self.world, self.host = world, host
        self.system, self.team = f"fault-system-{tag}", f"fault-team-{tag}"
        image = world.stack.image("hello")
        self.namespaces: list[Manifest] = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in (self.system, self.team)
        ]
        shared: dict[str, Any] = {"sharing": {"namespaces": {"from": "All"}}, "toolboxRef": {"name": "own"}}
        self.objects: list[Manifest] = [
            host.secret(self.system, "own"),
            host.toolbox(self.system, "own", secret="own"),
            *(manifests.quick_server(self.system, name, image, **shared) for name in SERVERS),
            *(
                manifests.connection(self.team, name, name, serverRef={"name": name, "namespace": self.system})
                for name in SERVERS
            ),
        ]

    def apply(self, order: Order) -> list[dict[str, str]]:
        """Namespaces first, the rest in an order; the connections' Secrets once all work."""
        cluster = self.world.stack.parts.cluster
        cluster.apply(self.namespaces)
        cluster.apply(order(self.objects))
        found: list[dict[str, str]] = []
        for name in SERVERS:
            self.world.await_condition(Target("AgentMCPConnection", self.team, name), "Ready", "True", seconds=90)
            secret = self.world.secret(self.team, f"{name}-mcp")
            assert secret is not None and self.world.refusal(secret, "echo", {}) is None
            found.append(secret)
        return found

    def delete(self, documents: list[Manifest]) -> None:
        """One `kubectl delete -f` with its wait."""
        text = yaml.safe_dump_all(documents)
        self.world.stack.parts.cluster.kubectl("delete", "-f", "-", "--timeout=120s", stdin=text, seconds=150)

    def has_left_nothing(self, tokens: list[dict[str, str]]) -> None:
        """No object, Secret, container, network, grant or open row; no token is good any more."""
        docker = self.world.stack.parts.engine.docker
        for kind in ("Toolbox", "MCPServer", "AgentMCPConnection"):
            for namespace in (self.system, self.team):
                found = self.world.stack.parts.cluster.get(kind.lower(), "-n", namespace)["items"]
                assert found == []
        assert docker("ps", "--all", "--quiet", "--filter", self.host.label) == ""
        assert docker("network", "ls", "--quiet", "--filter", self.host.label) == ""
        assert list((self.host.host.state_dir / "grants").glob("*.json")) == []
        for namespace in (self.system, self.team):
            until("rows closed", lambda name=namespace: self.world.open_rows(name), lambda rows: not rows)
        # The namespaces are ones that the test made.
        reasons = [
            f"SELECT delete_reason FROM {table} WHERE namespace IN ('{self.system}', '{self.team}')"  # noqa: S608
            for table in ("account_tool_instances", "agent_mcp_connections")
        ]
        closed = self.world.rows(" UNION ".join(reasons))
        assert closed == [("deleted",)], "nothing was abandoned or swept"
        for secret in tokens:
            assert self.world.refusal(secret, "echo", {}) is not None


@pytest.fixture
def installation(world: World, spare_host: SpareHost) -> Generator[Installation]:
    """Not applied yet; its namespaces are gone at the end whatever happened."""
    made = Installation(world, spare_host)
    yield made
    flags = ("--ignore-not-found", "--timeout=90s")
    world.stack.parts.cluster.kubectl("delete", "namespace", made.system, made.team, *flags, seconds=120)


@pytest.mark.parametrize("order", [as_written, backwards, shuffled])
def test_an_installation_applied_and_deleted_in_any_order_leaves_an_empty_host(
    installation: Installation, order: Order
) -> None:
    tokens = installation.apply(order)
    installation.delete(order([*installation.namespaces, *installation.objects]))
    installation.has_left_nothing(tokens)


def test_the_namespace_of_a_toolbox_goes_with_everything_in_it(installation: Installation) -> None:
    tokens = installation.apply(as_written)
    installation.delete(installation.namespaces[:1])
    waiting = Target("AgentMCPConnection", installation.team, "one")
    installation.world.await_condition(waiting, "Ready", "False", "ServerNotFound")
    installation.delete(installation.namespaces[1:])
    installation.has_left_nothing(tokens)

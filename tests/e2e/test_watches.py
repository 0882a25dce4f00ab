"""Labels of namespaces, Secrets and ConfigMaps that change under a running system, on real parts."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest

from localstack import quickstart
from localstack.kubernetes import Manifest
from localstack.quickstart import Target
from localstack.stack import LocalStack
from support import manifests
from support.poll import until
from support.system.world import World

pytestmark = pytest.mark.e2e

SYSTEM, TEAM = "mcp-system", "team-w"
TOOLBOX = Target("Toolbox", SYSTEM, "tbx-1")
SOON = 20.0
"""Seconds in which a change is noticed: a small part of the resync, which would find it too."""
CHOSEN: Any = {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"tools": "yes"}}}}


@pytest.fixture(scope="module")
def world(stack: LocalStack) -> Generator[World]:
    """The Toolbox, Ready, and a second namespace."""
    cluster = stack.parts.cluster

    def namespace(name: str) -> Manifest:
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}

    cluster.apply([namespace(SYSTEM), namespace(TEAM), *stack.host.manifests])
    try:
        quickstart.wait_ready(cluster, TOOLBOX, 90)
        yield World(stack)
    finally:
        cluster.kubectl("delete", "amc,mcps", "--all", "-n", TEAM, "--timeout=60s", seconds=75)
        cluster.kubectl("delete", "namespace", TEAM, SYSTEM, "--ignore-not-found", "--timeout=90s", seconds=120)


def kubectl(world: World, *arguments: str, namespace: str = SYSTEM) -> str:
    return world.stack.parts.cluster.kubectl(*arguments, "-n", namespace, seconds=75)


def label(world: World, *labels: str) -> None:
    world.stack.parts.cluster.kubectl("label", "--overwrite", "namespace", TEAM, *labels)


def server(world: World, name: str, *, namespace: str = SYSTEM, **spec: Any) -> Target:
    image = world.stack.image("hello")
    world.stack.parts.cluster.apply([manifests.quick_server(namespace, name, image, **spec)])
    return Target("MCPServer", namespace, name)


def connection(world: World, name: str, to: Target) -> Target:
    reference = {"name": to.name, "namespace": to.namespace}
    world.stack.parts.cluster.apply([manifests.connection(TEAM, name, to.name, serverRef=reference)])
    return Target("AgentMCPConnection", TEAM, name)


def word_from(**reference: object) -> list[Any]:
    """The quick server says this value as its version."""
    return [{"name": "VERSION", "valueFrom": reference}]


def runs_with(world: World, target: Target, word: str) -> str:
    """Ready with the value, soon; the id of its container."""

    def look() -> tuple[str, str, str]:
        status = world.status(target)
        ready = [str(each["status"]) for each in status.get("conditions", []) if each["type"] == "Ready"]
        said: dict[str, str] = status.get("serverInfo", {})
        container: dict[str, str] = status.get("container", {})
        return "".join(ready), said.get("version", ""), container.get("id", "")

    return until(f"{target.name} runs with {word}", look, lambda seen: seen[:2] == ("True", word), seconds=30)[2]


def test_an_agent_may_call_for_as_long_as_its_namespace_has_the_label(world: World) -> None:
    shared = server(world, "chosen", sharing=CHOSEN)
    agent = connection(world, "bot-chosen", shared)
    world.await_condition(agent, "Accepted", "False", "NotPermitted")
    world.await_condition(shared, "Ready", "True")
    label(world, "tools=yes")
    world.await_status(agent, SOON, phase="Connected")
    secret = world.secret(TEAM, f"{agent.name}-mcp")
    assert secret is not None
    assert "hello" in world.call(secret, "echo", {"word": "hello"}).text
    label(world, "tools=no")
    until("refused", lambda: world.refusal(secret, "echo", {}), seconds=SOON)
    denied = world.await_status(agent, SOON, phase="Denied")
    truths = {each["type"]: each["status"] for each in denied["conditions"]}
    assert (truths["Accepted"], truths["Programmed"]) == ("False", "True")
    assert f"label the namespace {TEAM}" in world.condition(agent, "Accepted")["message"]
    label(world, "tools=yes")
    world.await_status(agent, SOON, phase="Connected")
    assert "again" in world.call(secret, "echo", {"word": "again"}).text
    label(world, "tools-")
    world.await_status(agent, SOON, phase="Denied")


def test_a_toolbox_takes_servers_for_as_long_as_their_namespace_has_the_label(world: World) -> None:
    world.patch(TOOLBOX, {"spec": {"allowedServers": CHOSEN}})
    label(world, "tools=no")
    guest = server(world, "guest", namespace=TEAM)
    agent = connection(world, "bot-guest", guest)
    world.await_condition(guest, "Accepted", "False", "NotPermitted")
    label(world, "tools=yes")
    world.await_condition(guest, "Ready", "True")
    world.await_status(agent, phase="Connected")
    container = world.status(guest)["container"]["id"]
    label(world, "tools=no")
    world.await_condition(guest, "Accepted", "False", "NotPermitted", SOON)
    world.await_status(agent, SOON, phase="Denied")
    secret = world.secret(TEAM, f"{agent.name}-mcp")
    assert secret is not None and world.refusal(secret, "echo", {}) is not None
    assert container in world.containers(running_only=True), "what runs is left running"
    for target in (agent, guest):
        kubectl(world, "delete", target.resource, "--timeout=60s", namespace=TEAM)
    world.patch(TOOLBOX, {"spec": {"allowedServers": {"namespaces": {"from": "Same", "selector": None}}}})


def test_a_secret_that_changes_goes_and_comes_again_is_noticed_at_once(world: World) -> None:
    reader = server(world, "secretive", env=word_from(secretKeyRef={"name": "words", "key": "word"}))
    world.await_condition(reader, "ResolvedRefs", "False", "SecretNotFound")
    kubectl(world, "create", "secret", "generic", "words", "--from-literal=word=one")
    first = runs_with(world, reader, "one")
    kubectl(world, "patch", "secret", "words", "-p", json.dumps({"stringData": {"word": "two"}}))
    second = runs_with(world, reader, "two")
    assert second != first
    kubectl(world, "delete", "secret", "words")
    world.await_condition(reader, "ResolvedRefs", "False", "SecretNotFound", SOON)
    assert second in world.containers(running_only=True), "what runs is left running"
    kubectl(world, "create", "secret", "generic", "words", "--from-literal=word=two")
    assert runs_with(world, reader, "two") == second, "the same value again is no reason to replace anything"
    kubectl(world, "annotate", "secret", "words", "owner=somebody")
    kubectl(world, "delete", "secret", "words")
    kubectl(world, "create", "secret", "generic", "words", "--from-literal=word=three")
    assert runs_with(world, reader, "three") != second
    kubectl(world, "delete", reader.resource, "--timeout=60s")


def test_a_config_map_that_comes_and_changes_is_noticed_at_once(world: World) -> None:
    reader = server(world, "configured", env=word_from(configMapKeyRef={"name": "words", "key": "word"}))
    world.await_condition(reader, "ResolvedRefs", "False", "ConfigMapNotFound")
    kubectl(world, "create", "configmap", "words", "--from-literal=word=one")
    first = runs_with(world, reader, "one")
    kubectl(world, "patch", "configmap", "words", "-p", json.dumps({"data": {"word": "two"}}))
    assert runs_with(world, reader, "two") != first
    kubectl(world, "delete", reader.resource, "--timeout=60s")


def test_a_token_of_the_host_that_is_put_right_is_used_at_once(world: World) -> None:
    reference = (world.find(TOOLBOX) or {})["spec"]["authSecretRef"]
    secret = world.secret(SYSTEM, reference["name"])
    assert secret is not None

    def put(token: str) -> None:
        kubectl(
            world, "patch", "secret", reference["name"], "-p", json.dumps({"stringData": {reference["key"]: token}})
        )

    put("wrong")
    world.await_condition(TOOLBOX, "Reachable", "False", "HostUnauthorized", SOON)
    put(secret[reference["key"]])
    world.await_condition(TOOLBOX, "Ready", "True", seconds=SOON)

"""References of a server that lead nowhere, or where they may not: told, retried, resolved when the target appears."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localstack.quickstart import Target
from support.hosts.spare_host import SpareHost
from support.poll import until
from support.system.space import SYSTEM, Space

pytestmark = pytest.mark.faults


def from_secret(name: str, key: str = "word") -> list[dict[str, Any]]:
    return [{"name": "VERSION", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}]


def from_config(name: str, key: str = "word") -> list[dict[str, Any]]:
    return [{"name": "VERSION", "valueFrom": {"configMapKeyRef": {"name": name, "key": key}}}]


def waits(space: Space, server: Target, reason: str, *says: str) -> None:
    """Resolved=False with an instruction, an Event, and nothing on the host."""
    world = space.world
    resolved = world.await_condition(server, "ResolvedRefs", "False", reason)
    event = world.await_event(server, reason)
    for words in says:
        assert words in resolved["message"] and words in event, resolved["message"]
    status = world.status(server)
    assert status["phase"] == "Pending"
    assert "container" not in status and "instanceId" not in status


def runs_as(space: Space, server: Target, version: str) -> None:
    """Ready, with the value that was referred to."""
    space.world.await_condition(server, "Ready", "True")
    assert space.world.status(server)["serverInfo"]["version"] == version


def test_a_secret_and_its_key_are_waited_for_one_after_the_other(space: Space) -> None:
    server = space.server("needs-secret", env=from_secret("word-secret"))
    waits(space, server, "SecretNotFound", "The Secret word-secret does not exist", "create it in this namespace")
    space.kubectl("create", "secret", "generic", "word-secret", "--from-literal=other=x")
    waits(space, server, "SecretKeyNotFound", "The Secret word-secret has no key word", "add it")
    space.kubectl("patch", "secret", "word-secret", "-p", json.dumps({"stringData": {"word": "whispered"}}))
    runs_as(space, server, "whispered")


def test_a_config_map_and_its_key_are_waited_for_one_after_the_other(space: Space) -> None:
    server = space.server("needs-config", env=from_config("word-config"))
    waits(space, server, "ConfigMapNotFound", "The ConfigMap word-config does not exist", "create it")
    space.kubectl("create", "configmap", "word-config", "--from-literal=other=x")
    waits(space, server, "ConfigMapKeyNotFound", "The ConfigMap word-config has no key word", "add it")
    space.kubectl("patch", "configmap", "word-config", "-p", json.dumps({"data": {"word": "shouted"}}))
    runs_as(space, server, "shouted")


def test_pull_credentials_are_waited_for_and_must_be_of_the_right_form(space: Space) -> None:
    registry = space.world.stack.parts.registry.address
    server = space.server("needs-login", imagePullSecrets=[{"name": "login"}])
    waits(space, server, "SecretNotFound", "The Secret login does not exist")
    space.kubectl("create", "secret", "generic", "login", "--from-literal=.dockerconfigjson=none")
    waits(space, server, "SecretInvalid", "not a Docker configuration", "kubectl create secret docker-registry")
    space.kubectl("delete", "secret", "login")
    given = (f"--docker-server={registry}", "--docker-username=me", "--docker-password=word")
    space.kubectl("create", "secret", "docker-registry", "login", *given)
    space.world.await_condition(server, "Ready", "True")


def test_a_secret_that_disappears_later_is_no_reason_to_stop_what_runs(space: Space) -> None:
    space.kubectl("create", "secret", "generic", "passing", "--from-literal=word=once")
    server = space.server("careless", env=from_secret("passing"))
    runs_as(space, server, "once")
    before = space.world.status(server)["container"]["id"]
    space.kubectl("delete", "secret", "passing")
    space.world.patch(server, {"spec": {"sharing": {"namespaces": {"from": "All"}}}})
    resolved = space.world.await_condition(server, "ResolvedRefs", "False", "SecretNotFound")
    assert "passing" in resolved["message"]
    status = space.world.status(server)
    assert status["container"]["id"] == before and status["container"]["state"] == "running"
    assert before in space.world.containers(running_only=True)
    space.kubectl("create", "secret", "generic", "passing", "--from-literal=word=again")
    space.world.await_condition(server, "Ready", "True")
    runs_as(space, server, "again")


def test_a_toolbox_that_does_not_exist_is_waited_for_and_holds_nothing_up(space: Space) -> None:
    world = space.world
    server = space.server("homeless", toolboxRef={"name": "nowhere", "namespace": SYSTEM})
    accepted = world.await_condition(server, "Accepted", "False", "ToolboxNotFound")
    assert "The Toolbox mcp-system/nowhere does not exist: create it" in accepted["message"]
    assert "nowhere" in world.await_event(server, "ToolboxNotFound")
    body = world.find(server)
    assert body is not None
    assert not body["metadata"].get("finalizers"), "nothing was done for it, so nothing has to be cleaned up"
    space.delete(server)


def test_a_toolbox_that_takes_no_servers_of_this_namespace_says_so_until_it_does(
    space: Space, elsewhere: Space, spare_host: SpareHost
) -> None:
    world = space.world
    space.apply(
        spare_host.secret(space.namespace, "spare-own"),
        spare_host.toolbox(space.namespace, "choosy", secret="spare-own"),
    )
    toolbox = Target("Toolbox", space.namespace, "choosy")
    world.await_condition(toolbox, "Ready", "True")
    server = elsewhere.server("guest", toolboxRef={"name": "choosy", "namespace": space.namespace})
    accepted = world.await_condition(server, "Accepted", "False", "NotPermitted")
    assert "allowedServers.namespaces.from to All" in accepted["message"]
    assert "left running" not in accepted["message"], "it never ran"
    assert "allowedServers" in world.await_event(server, "NotPermitted")
    docker = world.stack.parts.engine.docker
    assert docker("ps", "--all", "--quiet", "--filter", spare_host.label) == ""
    world.patch(toolbox, {"spec": {"allowedServers": {"namespaces": {"from": "All"}}}})
    world.await_condition(server, "Ready", "True")
    world.patch(toolbox, {"spec": {"allowedServers": {"namespaces": {"from": "Same"}}}})
    accepted = world.await_condition(server, "Accepted", "False", "NotPermitted")
    assert "left running" in accepted["message"]
    assert docker("ps", "--quiet", "--filter", spare_host.label) != ""
    elsewhere.delete(server)
    until("removed", lambda: docker("ps", "--all", "--quiet", "--filter", spare_host.label), lambda ids: ids == "")
    space.delete(toolbox)

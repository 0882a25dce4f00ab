"""Names at the limit, one beyond it, and equal names in two namespaces."""

from __future__ import annotations

from typing import Any

import pytest

from localstack.kubernetes import Manifest
from localstack.progress import SetupError
from localstack.quickstart import Target
from support import manifests
from support.hosts.spare_host import SpareHost
from support.system.space import Space

pytestmark = pytest.mark.faults

LONGEST = "n" * 63
TOO_LONG = "n" * 64


def server(space: Space, name: str, **spec: Any) -> Manifest:
    return manifests.quick_server(space.namespace, name, space.image, **spec)


def test_the_longest_name_works_for_toolbox_server_and_connection(space: Space, spare_host: SpareHost) -> None:
    world = space.world
    space.apply(
        spare_host.secret(space.namespace, "for-longest"),
        spare_host.toolbox(space.namespace, LONGEST, secret="for-longest"),
        server(space, LONGEST, toolboxRef={"name": LONGEST, "namespace": space.namespace}),
        manifests.connection(space.namespace, LONGEST, LONGEST),
    )
    targets = [Target(kind, space.namespace, LONGEST) for kind in ("AgentMCPConnection", "MCPServer", "Toolbox")]
    for target in targets:
        world.await_condition(target, "Ready", "True")
    assert world.refusal(space.secret(LONGEST), "echo", {}) is None
    world.await_event(targets[1], "Ready", type_="Normal")
    for target in targets:
        space.delete(target)
    assert world.stack.parts.engine.docker("ps", "--all", "--quiet", "--filter", spare_host.label) == ""


@pytest.mark.parametrize("kind", ["Toolbox", "MCPServer", "AgentMCPConnection"])
def test_one_character_more_is_refused_with_what_to_do(space: Space, spare_host: SpareHost, kind: str) -> None:
    document = {
        "Toolbox": lambda: spare_host.toolbox(space.namespace, TOO_LONG),
        "MCPServer": lambda: server(space, TOO_LONG),
        "AgentMCPConnection": lambda: manifests.connection(space.namespace, TOO_LONG, "any"),
    }[kind]()
    world, target = space.world, Target(kind, space.namespace, TOO_LONG)
    expected = f"name the {kind} with at most 63 lower-case letters"
    if world.stack.parts.cluster.has_cel:
        with pytest.raises(SetupError, match=expected):
            space.apply(document)
        return
    space.apply(document)
    stalled = world.await_condition(target, "Stalled", "True", "SpecInvalid")
    assert expected in stalled["message"]
    assert expected in world.await_event(target, "SpecInvalid")
    body = world.find(target)
    assert body is not None and not body["metadata"].get("finalizers")
    space.delete(target)


def test_equal_names_in_two_namespaces_are_two_servers(space: Space, elsewhere: Space) -> None:
    world = space.world
    pairs: list[tuple[Space, Target, Target]] = []
    for place in (space, elsewhere):
        same = place.server("same", env=[{"name": "VERSION", "value": place.namespace}])
        pairs.append((place, same, place.connection("same", "same")))
    instances: set[str] = set()
    for place, same, connection in pairs:
        world.await_condition(connection, "Ready", "True")
        status = world.status(same)
        assert status["serverInfo"]["version"] == place.namespace
        assert status["container"]["id"] in place.world.containers_of(place.namespace)
        instances.add(status["instanceId"])
        assert world.refusal(place.secret("same"), "echo", {}) is None
    assert len(instances) == 2
    mine, theirs = (place.secret("same") for place in (space, elsewhere))
    assert world.refusal({**mine, "token": theirs["token"]}, "echo", {}) is not None
    space.delete(pairs[0][1])
    assert world.refusal(mine, "echo", {}) is not None
    assert world.refusal(theirs, "echo", {}) is None
    world.await_condition(pairs[1][2], "Ready", "True")

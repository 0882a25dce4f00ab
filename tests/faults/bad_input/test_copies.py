"""Objects copied with more than their spec: ids, tokens, finalizers and status that belong to another."""

from __future__ import annotations

from typing import Any

import pytest

from localstack.kubernetes import Manifest
from localstack.quickstart import Target
from support.poll import until
from support.system.space import Space
from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID, FINALIZER_CLEANUP

pytestmark = pytest.mark.faults

ADDED_BY_THE_SERVER = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "selfLink")


def exported(space: Space, kind: str, name: str) -> Manifest:
    """`kubectl get -o yaml`, without what no API server takes back."""
    body = space.world.stack.parts.cluster.get(kind, name, "-n", space.namespace)
    kept = {key: value for key, value in body["metadata"].items() if key not in ADDED_BY_THE_SERVER}
    return {**body, "metadata": kept}


def renamed(body: Manifest, name: str, **metadata: Any) -> Manifest:
    return {**body, "metadata": {**body["metadata"], "name": name, **metadata}}


def version_of(space: Space, kind: str, name: str) -> str:
    body = space.world.stack.parts.cluster.get(kind, name, "-n", space.namespace)
    return str(body["metadata"]["resourceVersion"])


def test_a_copied_instance_id_is_refused_and_the_original_is_not_touched(space: Space) -> None:
    world = space.world
    original, connection = space.server("original"), space.connection("to-original", "original")
    world.await_condition(connection, "Ready", "True")
    before = world.await_status(original, connections=1)
    copy = exported(space, "mcps", original.name)
    assert copy["metadata"]["annotations"][ANNOTATION_INSTANCE_ID] == before["instanceId"]
    assert FINALIZER_CLEANUP in copy["metadata"]["finalizers"] and copy["status"]["instanceId"]
    space.apply(renamed(copy, "copy"))
    duplicate = Target("MCPServer", space.namespace, "copy")
    stalled = world.await_condition(duplicate, "Stalled", "True", "InstanceIdInUse")
    assert f"{space.namespace}/original has the same instance id" in stalled["message"]
    assert f"another {ANNOTATION_INSTANCE_ID}" in stalled["message"]
    assert "original" in world.await_event(duplicate, "InstanceIdInUse")
    assert world.status(duplicate)["phase"] == "Error"
    space.delete(duplicate)
    assert world.status(original) == before, "not one condition changed"
    assert before["container"]["id"] in world.containers(running_only=True)
    assert ("account_tool_instances", "original") in world.open_rows(space.namespace)
    assert world.refusal(space.secret("to-original"), "echo", {}) is None


def test_a_copy_with_an_id_of_its_own_is_a_server_of_its_own(space: Space) -> None:
    world = space.world
    first = space.server("first")
    world.await_condition(first, "Ready", "True")
    copy = renamed(exported(space, "mcps", first.name), "second")
    space.apply(copy)
    second = Target("MCPServer", space.namespace, "second")
    world.await_condition(second, "Stalled", "True", "InstanceIdInUse")
    space.kubectl("annotate", second.resource, f"{ANNOTATION_INSTANCE_ID}-")
    world.await_condition(second, "Ready", "True")
    assert world.status(second)["instanceId"] != world.status(first)["instanceId"]
    assert world.status(second)["container"]["id"] != world.status(first)["container"]["id"]


def test_a_copy_takes_over_when_the_original_is_deleted(space: Space) -> None:
    world = space.world
    moved = space.server("moved")
    world.await_condition(moved, "Ready", "True")
    instance = world.status(moved)["instanceId"]
    space.apply(renamed(exported(space, "mcps", moved.name), "moved-here"))
    heir = Target("MCPServer", space.namespace, "moved-here")
    world.await_condition(heir, "Stalled", "True", "InstanceIdInUse")
    space.delete(moved)
    world.await_condition(heir, "Ready", "True")
    assert world.status(heir)["instanceId"] == instance
    until(
        "rows of the heir only",
        lambda: {name for _, name in world.open_rows(space.namespace)},
        lambda names: "moved-here" in names and "moved" not in names,
    )


def test_an_instance_id_that_is_none_or_changes_is_refused(space: Space) -> None:
    world = space.world
    server = space.server("fickle")
    world.await_condition(server, "Ready", "True")
    instance = world.status(server)["instanceId"]
    space.kubectl("annotate", "--overwrite", server.resource, f"{ANNOTATION_INSTANCE_ID}=not-a-uuid")
    assert "must be a UUID" in world.await_condition(server, "Stalled", "True", "InstanceIdInvalid")["message"]
    other = "0f2d3c4b-5a69-4788-9c0d-1e2f3a4b5c6d"
    space.kubectl("annotate", "--overwrite", server.resource, f"{ANNOTATION_INSTANCE_ID}={other}")
    told = until(
        "told which one to put back",
        lambda: world.await_condition(server, "Stalled", "True", "InstanceIdInvalid")["message"],
        lambda message: instance in message,
    )
    assert "cannot change" in told
    space.kubectl("annotate", "--overwrite", server.resource, f"{ANNOTATION_INSTANCE_ID}={instance}")
    world.await_condition(server, "Ready", "True")


@pytest.mark.usefixtures("good_server")
def test_a_copied_connection_secret_grants_nothing_and_is_left_alone(space: Space, elsewhere: Space) -> None:
    world = space.world
    connection = space.connection("rightful", "good")
    world.await_condition(connection, "Ready", "True")
    grants = world.grants_of(space.namespace)
    copy = exported(space, "secret", "rightful-mcp")
    assert copy["metadata"]["ownerReferences"] and copy["metadata"]["labels"]
    unowned = {key: value for key, value in copy["metadata"].items() if key != "ownerReferences"}
    # The same name elsewhere, another name here with and without its owner.
    space.apply(renamed(copy, "copied-owned"), renamed({**copy, "metadata": unowned}, "copied-loose"))
    elsewhere.apply({**copy, "metadata": {**unowned, "namespace": elsewhere.namespace}})
    versions = {name: version_of(space, "secret", name) for name in ("copied-owned", "copied-loose", "rightful-mcp")}
    away = version_of(elsewhere, "secret", "rightful-mcp")

    # Connections that would have to adopt one of them do not.
    for place, name, spec in (
        (space, "grabs-owned", {"secretName": "copied-owned"}),
        (space, "grabs-loose", {"secretName": "copied-loose"}),
        (space, "grabs-rightful", {"secretName": "rightful-mcp"}),
    ):
        thief = place.connection(name, "good", **spec)
        accepted = world.await_condition(thief, "Accepted", "False", "SecretConflict")
        assert f"The Secret {spec['secretName']} exists" in accepted["message"]
        space.delete(thief)
    assert world.grants_of(space.namespace) == grants
    for name, version in versions.items():
        assert version_of(space, "secret", name) == version, "neither written to nor adopted"
    assert version_of(elsewhere, "secret", "rightful-mcp") == away
    assert world.refusal(space.secret("rightful"), "echo", {}) is None

    # With the connection its token ends, in every copy.
    token = world.secret(space.namespace, "copied-loose")
    assert token is not None
    space.delete(connection)
    assert world.refusal(token, "echo", {}) is not None
    assert version_of(space, "secret", "copied-loose") == versions["copied-loose"]
    assert version_of(elsewhere, "secret", "rightful-mcp") == away


@pytest.mark.usefixtures("good_server")
def test_a_connection_pasted_with_status_finalizers_and_owners_starts_from_nothing(space: Space) -> None:
    world = space.world
    template = space.connection("template", "good")
    world.await_condition(template, "Ready", "True")
    body = exported(space, "amc", template.name)
    space.kubectl("create", "configmap", "owner")
    owner = space.world.stack.parts.cluster.get("configmap", "owner", "-n", space.namespace)["metadata"]["uid"]
    references = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner}]
    space.apply(renamed(body, "pasted", ownerReferences=references))
    pasted = Target("AgentMCPConnection", space.namespace, "pasted")
    world.await_condition(pasted, "Ready", "True")
    assert world.status(pasted)["connectionId"] != world.status(template)["connectionId"]
    assert world.status(pasted)["secretName"] == "pasted-mcp"
    assert space.secret("pasted")["token"] != space.secret("template")["token"]
    token = space.secret("pasted")
    space.delete(pasted)
    assert world.refusal(token, "echo", {}) is not None
    until("without its Secret", lambda: world.secret(space.namespace, "pasted-mcp") is None)
    world.await_condition(template, "Ready", "True")
    assert world.refusal(space.secret("template"), "echo", {}) is None

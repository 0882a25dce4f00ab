"""Objects deleted at a bad moment, by force, or with what others need: nothing is left, and what lives says so."""

from __future__ import annotations

import json

import pytest

from localstack.quickstart import Target
from support.hosts.spare_host import SpareHost
from support.kubernetes.api import path_of
from support.manifests import quick_server
from support.poll import until
from support.system import bad_servers
from support.system.space import Space, opened

pytestmark = pytest.mark.faults


def instance_label(space: Space, server: Target) -> str:
    return f"label=magictoolbox.dev/instance={space.world.status(server)['instanceId']}"


def left(space: Space, label: str) -> list[str]:
    """Containers and networks of one instance."""
    docker = space.world.stack.parts.engine.docker
    containers = docker("ps", "--all", "--quiet", "--filter", label).split()
    return containers + docker("network", "ls", "--quiet", "--filter", label).split()


def test_a_server_deleted_while_its_image_is_pulled_leaves_nothing(space: Space, endless_pull: str) -> None:
    server = space.server("deleted-in-pull", image=endless_pull)
    space.world.await_condition(server, "Ready", "False", "Pulling")
    label = instance_label(space, server)
    space.delete(server)
    assert space.world.find(server) is None
    assert left(space, label) == []


def test_a_server_deleted_while_it_starts_leaves_nothing(space: Space) -> None:
    server = space.server("deleted-in-start", **bad_servers.SILENT)
    space.world.await_condition(server, "Ready", "False", "Starting")
    label = instance_label(space, server)
    assert left(space, label)
    space.delete(server)
    assert left(space, label) == []


@pytest.mark.parametrize("kept", [False, True], ids=["new-id", "exported-id"])
def test_a_server_deleted_and_made_again_at_once_has_one_container_and_it_is_the_new_one(
    space: Space, kept: bool
) -> None:
    world, name = space.world, f"again-{'exported' if kept else 'new'}"
    server, connection = space.server(name), space.connection(f"to-{name}", name)
    world.await_condition(connection, "Ready", "True")
    before, label = world.status(server), instance_label(space, server)
    document = quick_server(space.namespace, name, space.image)
    if kept:
        document["metadata"]["annotations"] = {"magictoolbox.dev/instance-id": before["instanceId"]}
    text = json.dumps(document)
    world.stack.parts.cluster.kubectl("replace", "--force", "-f", "-", stdin=text, seconds=90)
    world.await_condition(server, "Ready", "True")
    after = world.status(server)
    assert (after["instanceId"] == before["instanceId"]) == kept
    assert after["container"]["id"] != before["container"]["id"]
    assert before["container"]["id"] not in world.containers()
    assert bool(left(space, label)) == kept
    world.await_condition(connection, "Ready", "True")
    secret = space.secret(connection.name)
    assert after["instanceId"] in secret["url"]
    assert world.refusal(secret, "echo", {}) is None


def test_what_is_left_of_objects_that_lost_their_finalizers_is_swept(space: Space) -> None:
    world = space.world
    server, connection = space.server("forced"), space.connection("to-forced", "forced")
    world.await_condition(connection, "Ready", "True")
    label, secret = instance_label(space, server), space.secret("to-forced")
    grant = f"{world.status(connection)['connectionId']}.json"
    names = {("account_tool_instances", "forced"), ("agent_mcp_connections", "to-forced")}
    until("rows", lambda: set(world.open_rows(space.namespace)), lambda open_: names <= open_)
    api = world.api
    instance = world.status(server)["instanceId"]
    for target in (connection, server):
        # Straight to the API, so that the operator has no time to do it properly.
        path = path_of(target.kind, target.namespace, target.name)
        stripped = {"metadata": {"finalizers": None}}
        api.request("PATCH", path, stripped, content_type="application/merge-patch+json")
        api.request("DELETE", path)
    until("no container", lambda: left(space, label), lambda found: found == [], seconds=60)
    until("no grant", lambda: grant in world.grants_on_disk(), lambda there: not there)
    until("rows closed", lambda: names & set(world.open_rows(space.namespace)), lambda open_: not open_)
    reason = f"SELECT delete_reason FROM account_tool_instances WHERE id = '{instance}'"  # noqa: S608 - an id of ours
    assert world.rows(reason) == [("swept",)]
    assert world.refusal(secret, "echo", {}) is not None


def test_a_connection_outlives_its_server_and_works_again_with_the_next_of_that_name(space: Space) -> None:
    world = space.world
    server, connection = space.server("mortal"), space.connection("to-mortal", "mortal")
    world.await_condition(connection, "Ready", "True")
    old = space.secret("to-mortal")
    space.delete(server)
    ready = world.await_condition(connection, "Ready", "False", "ServerNotFound")
    assert "create it" in ready["message"]
    assert "mortal does not exist" in world.await_event(connection, "ServerNotFound")
    assert world.status(connection)["phase"] == "Pending"
    assert "Programmed" not in {c["type"] for c in world.status(connection)["conditions"]}
    assert world.refusal(old, "echo", {}) is not None
    assert f"{world.status(connection)['connectionId']}.json" not in world.grants_on_disk()
    space.server("mortal")
    world.await_condition(connection, "Ready", "True")
    new = space.secret("to-mortal")
    assert new["token"] == old["token"] and new["url"] != old["url"]
    assert world.refusal(new, "echo", {}) is None


def test_a_teams_namespace_goes_with_its_connections_and_a_servers_namespace_leaves_them_waiting(space: Space) -> None:
    world = space.world
    with opened(world) as servers:
        shared = servers.server("shared", sharing={"namespaces": {"from": "All"}})
        there = {"name": "shared", "namespace": servers.namespace}
        with opened(world) as team:
            theirs = team.connection("theirs", "shared", serverRef=there)
            mine = space.connection("mine", "shared", serverRef=there)
            for connection in (theirs, mine):
                world.await_condition(connection, "Ready", "True")
            token, own = team.secret("theirs"), space.secret("mine")
        # The team's namespace is gone now, and with it its grant and its row: `opened` saw to that.
        assert world.refusal(token, "echo", {}) is not None
        assert world.refusal(own, "echo", {}) is None
        until("one connection", lambda: world.status(shared).get("connections"), lambda count: count == 1)
        world.await_condition(shared, "Ready", "True")
    # Now the server's namespace is gone too, with its container.
    ready = world.await_condition(mine, "Ready", "False", "ServerNotFound")
    assert f"{servers.namespace}/shared does not exist" in ready["message"]
    assert world.refusal(own, "echo", {}) is not None
    assert f"{world.status(mine)['connectionId']}.json" not in world.grants_on_disk()
    space.delete(mine)


def test_a_deleted_toolbox_waits_for_its_servers_and_names_them(space: Space, spare_host: SpareHost) -> None:
    world, toolbox = space.world, Target("Toolbox", space.namespace, "retiring")
    space.apply(
        spare_host.secret(space.namespace, "retiring"),
        spare_host.toolbox(space.namespace, "retiring", secret="retiring"),
    )
    world.await_condition(toolbox, "Ready", "True")
    reference = {"name": "retiring", "namespace": space.namespace}
    server = space.server("last-guest", toolboxRef=reference)
    connection = space.connection("to-last-guest", "last-guest")
    world.await_condition(connection, "Ready", "True")
    space.delete(toolbox, wait=False)
    ready = until(
        "waiting",
        lambda: world.condition(toolbox, "Ready"),
        lambda condition: condition["reason"] == "InUse",
    )
    assert f"Still used by MCPServer {server.namespace}/last-guest: delete them first" in ready["message"]
    assert "last-guest" in world.await_event(toolbox, "InUse")
    assert world.status(toolbox)["phase"] == "Deleting"
    held = world.await_condition(server, "Ready", "False", "ToolboxNotReady")
    assert "is being deleted" in held["message"]
    assert world.refusal(space.secret("to-last-guest"), "echo", {}) is None, "nothing is taken away before its time"
    space.kubectl("delete", "secret", "retiring", "--wait=false")
    space.delete(server)
    until("gone", lambda: world.find(toolbox), lambda found: found is None)
    until("its Secret too", lambda: world.secret(space.namespace, "retiring") is None)
    assert left(space, spare_host.label) == []
    space.delete(connection)

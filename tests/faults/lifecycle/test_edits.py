"""Specs that change faster than they can be carried out: the last one wins, with one container all along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from localstack.quickstart import Target
from support.kubernetes.api import path_of
from support.manifests import QUICK_SERVER
from support.poll import until
from support.system import bad_servers
from support.system.space import Space

pytestmark = pytest.mark.faults

QUICK = {"command": ["python3", "-S", "-c", QUICK_SERVER]}
EDITS = 50


def version(number: object) -> dict[str, Any]:
    return {"env": [{"name": "VERSION", "value": str(number)}]}


def pulling(space: Space, name: str, image: str) -> Target:
    """A server whose image is being pulled, and will be for a long time."""
    server = space.server(name, image=image)
    ready = space.world.await_condition(server, "Ready", "False", "Pulling")
    assert "being pulled" in ready["message"]
    assert space.world.status(server)["phase"] == "Pending"
    return server


def starting(space: Space, name: str) -> Target:
    """A server whose process runs, and never answers."""
    server = space.server(name, **bad_servers.SILENT)
    space.world.await_condition(server, "Ready", "False", "Starting")
    assert space.world.status(server)["phase"] == "Starting"
    return server


def is_alone(space: Space, server: Target) -> str:
    """The container in status, which is the only one the host has for this server."""
    world = space.world
    status = world.status(server)
    label = f"label=magictoolbox.dev/instance={status['instanceId']}"
    found = world.stack.parts.engine.docker("ps", "--all", "--quiet", "--no-trunc", "--filter", label).split()
    assert found == [status["container"]["id"]]
    return found[0]


def admin(space: Space) -> Callable[[Target, dict[str, Any]], None]:
    """A writer that does not start a program for each write."""
    api = space.world.api

    def write(target: Target, spec: dict[str, Any]) -> None:
        path = path_of(target.kind, target.namespace, target.name)
        api.request("PATCH", path, {"spec": spec}, content_type="application/merge-patch+json")

    return write


def test_an_image_edited_while_it_is_pulled_ends_that_pull(space: Space, endless_pull: str) -> None:
    world = space.world
    server = pulling(space, "edited-in-pull", endless_pull)
    world.patch(server, {"spec": {"image": space.image}})
    world.await_condition(server, "Ready", "True")
    assert world.status(server)["container"]["image"] == space.image
    is_alone(space, server)


@pytest.mark.parametrize(
    "edit",
    [{**QUICK, **version("edited")}, {**QUICK, "path": "/mcp"}, {**QUICK, "resources": {"limits": {"pids": 100}}}],
    ids=["environment", "path", "limits"],
)
def test_a_spec_edited_while_its_server_starts_replaces_the_container(space: Space, edit: dict[str, Any]) -> None:
    world = space.world
    server = starting(space, f"edited-in-start-{max(edit)}")
    before = world.status(server)["container"]["id"]
    world.patch(server, {"spec": edit})
    world.await_condition(server, "Ready", "True")
    assert is_alone(space, server) != before


def test_a_port_edited_while_its_server_starts_needs_no_new_container(space: Space) -> None:
    world = space.world
    server = space.server("edited-port", port=8001)
    ready = world.await_condition(server, "Ready", "False", "Starting")
    until("why not", lambda: world.condition(server, "Ready")["message"], lambda said: "nothing listens" in said)
    assert "has not answered yet" in ready["message"]
    before = world.status(server)["container"]["id"]
    world.patch(server, {"spec": {"port": 8000}})
    world.await_condition(server, "Ready", "True")
    assert is_alone(space, server) == before


def test_there_and_back_again_ends_where_it_began(space: Space) -> None:
    world = space.world
    server = space.server("there-and-back", **version("A"))
    world.await_condition(server, "Ready", "True")
    write = admin(space)
    write(server, version("B"))
    write(server, version("A"))
    world.await_condition(server, "Ready", "True")
    assert world.status(server)["serverInfo"]["version"] == "A"
    is_alone(space, server)


def test_of_fifty_edits_in_a_row_the_last_one_wins(space: Space) -> None:
    world = space.world
    server = space.server("restless", **version(0))
    connection = space.connection("to-restless", "restless")
    world.await_condition(connection, "Ready", "True")
    write = admin(space)
    for number in range(1, EDITS + 1):
        write(server, version(number))
    world.await_condition(server, "Ready", "True", seconds=120)
    body = world.find(server)
    assert body is not None
    assert body["metadata"]["generation"] == EDITS + 1 == body["status"]["observedGeneration"]
    assert body["status"]["serverInfo"]["version"] == str(EDITS)
    is_alone(space, server)
    assert [line for line in space.witness.doubles if str(body["status"]["instanceId"]) in line] == []
    world.await_condition(connection, "Ready", "True")
    assert world.refusal(space.secret("to-restless"), "echo", {}) is None


@pytest.mark.parametrize("moment", ["pulling", "starting"])
def test_a_server_that_is_stopped_before_it_ever_answered_stops_and_can_be_started(
    space: Space, endless_pull: str, moment: str
) -> None:
    world, name = space.world, f"stopped-while-{moment}"
    server = pulling(space, name, endless_pull) if moment == "pulling" else starting(space, name)
    world.patch(server, {"spec": {"state": "Stopped"}})
    ready = world.await_condition(server, "Ready", "False", "Stopped")
    assert "set state to Running" in ready["message"]
    assert world.status(server)["phase"] == "Stopped"
    world.await_event(server, "Stopped", type_="Normal")
    label = f"label=magictoolbox.dev/instance={world.status(server)['instanceId']}"
    assert world.stack.parts.engine.docker("ps", "--quiet", "--filter", label) == ""
    world.patch(server, {"spec": {"state": "Running", "image": space.image, **QUICK}})
    world.await_condition(server, "Ready", "True")
    is_alone(space, server)

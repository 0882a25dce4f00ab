"""The example with a volume, from `kubectl apply` to data that outlives the object, on real parts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Generator
from typing import Any

import pytest

from localstack import quickstart
from localstack.images import QUICKSTART_PREFIX
from localstack.kubernetes import REPOSITORY, Manifest, load_manifests
from localstack.quickstart import Target
from localstack.stack import LocalStack
from support import manifests
from support.poll import until
from support.system.world import World

pytestmark = pytest.mark.e2e

NAMESPACE = "mcp-system"
TOOLBOX = Target("Toolbox", NAMESPACE, "tbx-1")
NOTES = Target("MCPServer", NAMESPACE, "notes")
CONNECTION = Target("AgentMCPConnection", NAMESPACE, "bot-notes")


@pytest.fixture(scope="module")
def world(stack: LocalStack) -> Generator[World]:
    """A Ready Toolbox, and a connection to the server that is to come."""
    cluster = stack.parts.cluster
    cluster.kubectl("create", "namespace", NAMESPACE)
    try:
        cluster.apply([*stack.host.manifests, manifests.connection(NAMESPACE, CONNECTION.name, NOTES.name)])
        quickstart.wait_ready(cluster, TOOLBOX, 90)
        yield World(stack)
    finally:
        cluster.kubectl("delete", "amc,mcps,tbx", "--all", "-n", NAMESPACE, "--timeout=90s", seconds=100)
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=90s", seconds=100)


def example(world: World, **metadata: Any) -> Manifest:
    """The example's server, with the image of the local registry."""
    (document,) = load_manifests(REPOSITORY / "examples" / "volumes")
    name = str(document["spec"]["image"]).removeprefix(QUICKSTART_PREFIX).partition(":")[0]
    spec = {**document["spec"], "image": world.stack.image(name)}
    return {**document, "metadata": {**document["metadata"], **metadata}, "spec": spec}


def call(world: World, tool: str, **arguments: str) -> str:
    """What a tool says to the agent of the connection, once the agent may call at all."""
    secret = world.secret(NAMESPACE, f"{CONNECTION.name}-mcp")
    assert secret is not None
    until("let in", lambda: world.refusal(secret, "word_count", {"text": ""}), lambda why: why is None, seconds=60)
    return world.call(secret, tool, arguments).text


def on_host(world: World, text: str) -> str:
    """Runs the block of docs/volumes.md in which a text stands, for this host's folder and its own objects."""
    page = (REPOSITORY / "docs" / "volumes.md").read_text()
    (block,) = [each for each in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if text in each]
    script = block.replace("/var/lib/magic-toolbox", str(world.stack.host.state_dir))
    script = script.replace("label=magictoolbox.dev/host", f"label=magictoolbox.dev/host={world.stack.host.host_id}")
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_notes_outlive_containers_and_the_object_and_end_when_they_are_to(world: World) -> None:
    cluster, docker = world.stack.parts.cluster, world.stack.parts.engine.docker
    cluster.apply([example(world)])
    quickstart.wait_ready(cluster, NOTES, 90)
    quickstart.wait_ready(cluster, CONNECTION, 60)
    call(world, "remember", note="kept")
    first = world.status(NOTES)

    world.patch(NOTES, {"spec": {"env": [{"name": "NOTES", "value": "/data/notes.txt"}, {"name": "N", "value": "2"}]}})
    world.await_condition(NOTES, "Ready", "True")
    edited = world.status(NOTES)["container"]
    assert edited["id"] != first["container"]["id"]
    assert "kept" in call(world, "recall")

    docker("kill", edited["id"])
    until("restarted", lambda: world.status(NOTES)["container"]["restarts"], lambda restarts: restarts == 1)
    world.await_condition(NOTES, "Ready", "True")
    assert "kept" in call(world, "recall")
    (listed,) = on_host(world, "{{.Name}}").splitlines()
    volume, whose, name, instance = listed.split()
    assert (whose, name, instance) == (f"{NAMESPACE}/notes", "data", first["instanceId"])
    assert on_host(world, "dangling") == "", "none is retained yet"

    cluster.kubectl("delete", NOTES.resource, "-n", NAMESPACE, "--timeout=60s", seconds=75)
    assert world.containers() == [] and world.networks() == []
    assert on_host(world, "dangling").split() == [volume]

    again = example(world, annotations={"magictoolbox.dev/instance-id": instance})
    cluster.apply([again])
    quickstart.wait_ready(cluster, NOTES, 90)
    assert "kept" in call(world, "recall")
    assert on_host(world, "dangling") == ""

    world.patch(NOTES, {"spec": {"volumePolicy": "Delete"}})
    cluster.kubectl("delete", NOTES.resource, "-n", NAMESPACE, "--timeout=60s", seconds=75)
    assert on_host(world, "{{.Name}}") == ""

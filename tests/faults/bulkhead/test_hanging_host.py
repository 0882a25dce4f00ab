"""A host that accepts connections and never answers: it may hold up its own objects, and nobody else's."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from localstack import kubernetes as kubernetes_module
from localstack import stack as stack_module
from localstack.docker import Engine
from localstack.host import Host, Settings
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.quickstart import Target
from localstack.registry import Registry
from localstack.stack import Parts
from support import manifests
from support.poll import until
from support.system.space import SYSTEM, TOOLBOX, toolbox_documents
from support.system.world import World

pytestmark = pytest.mark.faults

HANGING = Target("Toolbox", SYSTEM, "tbx-hanging")
SERVERS = 40
"""More than the workers that the operator has for one kind."""
PATIENT = ("--timing=host_connect=200", "--timing=host_call=200", "--timing=host_silence=250")
"""Longer than the test: whoever waits for the hanging host waits to its end."""


@pytest.fixture
def world(
    supervisor: Supervisor, state_folder: Path, postgres_server: Postgres, docker_engine: Engine, registry: Registry
) -> Generator[World]:
    """A system of its own, whose operator is very patient with hosts."""
    cluster = kubernetes_module.start(supervisor, state_folder / "bulkhead-kubernetes")
    cluster.install_crds()
    parts = Parts(cluster, postgres_server, docker_engine, registry)
    dsn = postgres_server.create_database(f"bulkhead_{secrets.token_hex(4)}")
    stack = stack_module.start_on(
        supervisor, parts, state_folder / "bulkhead", database_url=dsn, operator_arguments=PATIENT
    )
    try:
        cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}])
        cluster.apply(toolbox_documents(stack.host.manifests))
        found = World(stack)
        found.await_condition(TOOLBOX, "Ready", "True")
        yield found
        cluster.kubectl("delete", "namespace", SYSTEM, "--timeout=120s", seconds=130)
    finally:
        for child in (stack.operator.child, stack.host.gateway, stack.host.dtma):
            if child is not None:
                child.stop()


@pytest.fixture
def hanging(world: World, supervisor: Supervisor, state_folder: Path) -> Generator[Host]:
    """A second host beside the first, on the same engine."""
    host = Host(supervisor, state_folder / "bulkhead-hanging", Settings(name=HANGING.name))
    host.start()
    world.stack.parts.cluster.apply(toolbox_documents(host.manifests, leaseDuration="300s"))
    world.await_condition(HANGING, "Ready", "True")
    yield host
    for child in (host.gateway, host.dtma):
        if child is not None:
            child.stop()


def test_a_host_that_never_answers_holds_up_no_other_host(world: World, hanging: Host) -> None:
    image = world.stack.image("hello")
    waiting = [Target("MCPServer", SYSTEM, f"waits-{number}") for number in range(SERVERS)]
    assert hanging.dtma is not None
    os.kill(hanging.dtma.pid, signal.SIGSTOP)
    try:
        world.stack.parts.cluster.apply(
            [
                manifests.quick_server(SYSTEM, target.name, image, toolbox=HANGING.name, state="Stopped")
                for target in waiting
            ]
        )

        def begun() -> list[str]:
            items = world.stack.parts.cluster.get("mcps", "-n", SYSTEM)["items"]
            return [item["metadata"]["name"] for item in items if item["metadata"].get("finalizers")]

        until("the hanging host's servers are being worked on", begun, lambda names: len(names) >= 8)
        world.stack.parts.cluster.apply(
            [
                manifests.quick_server(SYSTEM, "fine", image),
                manifests.connection(SYSTEM, "bot", "fine"),
            ]
        )
        world.await_condition(Target("MCPServer", SYSTEM, "fine"), "Ready", "True")
        world.await_condition(Target("AgentMCPConnection", SYSTEM, "bot"), "Ready", "True")
        assert world.condition(HANGING, "Reachable")["status"] == "True", "the hanging host still holds what it holds"
        assert len(begun()) < SERVERS, "its servers wait in the queue, not all at the host"
    finally:
        os.kill(hanging.dtma.pid, signal.SIGCONT)
    for target in waiting:
        world.await_status(target, phase="Stopped", seconds=90)

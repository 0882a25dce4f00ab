"""A whole system for fault tests: real parts, and leases and back-off short enough to wait for."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from pathlib import Path

import pytest

from localstack import kubernetes as kubernetes_module
from localstack import stack as stack_module
from localstack.docker import Engine
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.registry import Registry
from localstack.stack import LocalStack, Parts
from support.poll import until
from support.space import SYSTEM, TOOLBOX, Space, toolbox_documents
from support.witness import witness
from support.world import World

SHORT_LEASE = ("--timing=lease_duration=6", "--timing=lease_renew_deadline=4", "--timing=lease_retry=0.5")
SHORT_BACKOFF = ("--timing=backoff_max=3", "--timing=ref_retry=1")


@pytest.fixture(scope="session")
def fault_stack(
    supervisor: Supervisor,
    state_folder: Path,
    postgres_server: Postgres,
    docker_engine: Engine,
    registry: Registry,
) -> LocalStack:
    """API server, host and operator of their own, on a database of their own."""
    cluster = kubernetes_module.start(supervisor, state_folder / "fault-kubernetes")
    cluster.install_crds()
    parts = Parts(cluster, postgres_server, docker_engine, registry)
    dsn = postgres_server.create_database(f"faults_{secrets.token_hex(4)}")
    arguments = (*SHORT_LEASE, *SHORT_BACKOFF)
    return stack_module.start_on(
        supervisor, parts, state_folder / "fault-stack", database_url=dsn, operator_arguments=arguments
    )


@pytest.fixture(scope="session")
def world(fault_stack: LocalStack) -> World:
    """The system with its Toolbox Ready."""
    cluster = fault_stack.parts.cluster
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
    cluster.apply([namespace, *toolbox_documents(fault_stack.host.manifests)])
    found = World(fault_stack)
    found.await_condition(TOOLBOX, "Ready", "True")
    return found


@pytest.fixture
def space(world: World) -> Generator[Space]:
    """A fresh namespace. Its deletion at the end must leave nothing: no container, no grant, no open row.

    All the time, no instance may have had two running containers.
    """
    name = f"fault-{secrets.token_hex(4)}"
    cluster = world.stack.parts.cluster
    cluster.kubectl("create", "namespace", name)
    with witness(("docker",), world.stack.host.host_id) as seen:
        try:
            yield Space(world, name, seen)
        finally:
            cluster.kubectl("delete", "namespace", name, "--timeout=90s", seconds=100)
        until("no container left", lambda: world.containers_of(name), lambda left: not left)
        until("no grant left", lambda: world.grants_of(name), lambda left: not left)
        until("rows closed", lambda: world.open_rows(name), lambda left: not left)
    assert seen.doubles == []

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
from support.hosts import spare_host as spare_host_module
from support.hosts.spare_host import SpareHost
from support.proxies.background_proxy import BackgroundProxy, proxy_in_background
from support.system.space import SYSTEM, TOOLBOX, Space, opened, toolbox_documents
from support.system.world import World

SHORT_LEASE = ("--timing=lease_duration=10", "--timing=lease_renew_deadline=7", "--timing=lease_retry=1")
SHORT_BACKOFF = ("--timing=backoff_max=3", "--timing=ref_retry=1")


@pytest.fixture(scope="session")
def record_proxy(postgres_server: Postgres) -> Generator[BackgroundProxy]:
    """What the operator reaches its database through: transparent unless a test cuts it."""
    with proxy_in_background("127.0.0.1", postgres_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def fault_stack(
    supervisor: Supervisor,
    state_folder: Path,
    postgres_server: Postgres,
    docker_engine: Engine,
    registry: Registry,
    record_proxy: BackgroundProxy,
) -> LocalStack:
    """API server, host and operator of their own, on a database of their own."""
    cluster = kubernetes_module.start(supervisor, state_folder / "fault-kubernetes")
    cluster.install_crds()
    parts = Parts(cluster, postgres_server, docker_engine, registry)
    dsn = postgres_server.create_database(f"faults_{secrets.token_hex(4)}")
    arguments = (*SHORT_LEASE, *SHORT_BACKOFF)
    return stack_module.start_on(
        supervisor,
        parts,
        state_folder / "fault-stack",
        database_url=record_proxy.in_front_of(dsn),
        operator_arguments=arguments,
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


@pytest.fixture(scope="session")
def spare_host(fault_stack: LocalStack, state_folder: Path) -> SpareHost:
    """A second host, started for the first test that asks for it."""
    return spare_host_module.start(fault_stack.supervisor, state_folder / "spare-host")


@pytest.fixture
def space(world: World) -> Generator[Space]:
    """A fresh namespace of one test; see `support.system.space.opened`."""
    with opened(world) as found:
        yield found

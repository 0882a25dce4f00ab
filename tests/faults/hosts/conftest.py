"""A second host for the tests of this folder, and a Toolbox on it for each."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from localstack import kubernetes as kubernetes_module
from localstack.docker import Engine
from localstack.operator import Operator
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.stack import LocalStack
from support.hosts.far_host import FarHost
from support.hosts.far_toolbox import FarToolbox, attached
from support.system.space import Space
from support.system.witness import witness
from support.system.world import World

SHORT = (
    "--timing=lease_duration=10",
    "--timing=lease_renew_deadline=8",
    "--timing=lease_retry=0.5",
    "--timing=backoff_max=3",
)


@pytest.fixture(scope="session")
def far_host(supervisor: Supervisor, docker_engine: Engine) -> Generator[FarHost]:
    """One host that every test here ill-treats, and gives back whole and empty."""
    host = FarHost(supervisor)
    host.start()
    yield host
    host.close()


@pytest.fixture
def far(space: Space, far_host: FarHost) -> Generator[FarToolbox]:
    """A Ready Toolbox of the test's own on that host."""
    with attached(space, far_host) as found:
        yield found


@pytest.fixture(scope="session")
def second_world(
    supervisor: Supervisor, state_folder: Path, world: World, postgres_server: Postgres, far_host: FarHost
) -> World:
    """A second cluster with an operator of its own, and no host but the far one."""
    cluster = kubernetes_module.start(supervisor, state_folder / "second-kubernetes")
    cluster.install_crds()
    cluster.install_operator_account()
    dsn = postgres_server.create_database(f"second_{secrets.token_hex(4)}")
    operator = Operator(supervisor, cluster.operator_kubeconfig, dsn, extra=SHORT)
    operator.start()
    parts = replace(world.stack.parts, cluster=cluster)
    return World(LocalStack(supervisor, parts, far_host.host, operator))


@pytest.fixture
def second_space(second_world: World, far_host: FarHost) -> Generator[Space]:
    """A namespace there."""
    name = f"fault-{secrets.token_hex(4)}"
    cluster = second_world.stack.parts.cluster
    cluster.kubectl("create", "namespace", name)
    with witness(far_host.engine.command_line, far_host.host_id) as seen:
        yield Space(second_world, name, seen)
    cluster.kubectl("delete", "namespace", name, "--timeout=90s", seconds=100)

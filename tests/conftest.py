"""Fixtures on real parts, built on the same local stack as `make demo`; each starts when a test first asks for it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from localstack import docker as docker_module
from localstack import kubernetes as kubernetes_module
from localstack import ports
from localstack import postgres as postgres_module
from localstack import registry as registry_module
from localstack import stack as stack_module
from localstack.docker import Engine
from localstack.kubernetes import Cluster
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.registry import Registry
from localstack.stack import LocalStack, Parts
from support import side_by_side

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

SUPERVISOR = pytest.StashKey[Supervisor]()


def pytest_configure() -> None:
    """With `-n`: no two processes choose the same port."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        ports.take_share(int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n`: what takes longest comes first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: side_by_side.rank_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> side_by_side.Scheduler:
    """With `-n`: tests that share servers stay in one process."""
    return side_by_side.Scheduler(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of the last test that failed, the logs of all parts outlast the run."""
    report = yield
    supervisor = item.config.stash.get(SUPERVISOR, None)
    if report.failed and supervisor is not None:
        supervisor.keep_logs()
    return report


@pytest.fixture(scope="session")
def supervisor(pytestconfig: pytest.Config) -> Generator[Supervisor]:
    """Owner of every process the session starts; also removes the session's state folder."""
    with stack_module.workspace("magic-toolbox-tests-") as supervisor:
        pytestconfig.stash[SUPERVISOR] = supervisor
        yield supervisor
        del pytestconfig.stash[SUPERVISOR]


@pytest.fixture(scope="session")
def state_folder(supervisor: Supervisor) -> Path:
    """A folder for the session's servers, readable by all users, removed at the end."""
    return supervisor.folder


@pytest.fixture(scope="session")
def kubernetes(supervisor: Supervisor, state_folder: Path) -> Cluster:
    """A Kubernetes API server (with etcd and controller manager) that serves our CRDs."""
    cluster = kubernetes_module.start(supervisor, state_folder / "kubernetes")
    cluster.install_crds()
    return cluster


@pytest.fixture
def namespace(kubernetes: Cluster) -> Generator[str]:
    """A fresh namespace; its deletion is started at the end, not awaited."""
    name = f"test-{secrets.token_hex(4)}"
    kubernetes.kubectl("create", "namespace", name)
    yield name
    kubernetes.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="session")
def postgres_server(supervisor: Supervisor, state_folder: Path) -> Postgres:
    """A PostgreSQL server of our own."""
    return postgres_module.start(supervisor, state_folder / "postgres")


@pytest.fixture
def postgres(postgres_server: Postgres) -> Generator[str]:
    """DSN of a fresh, empty database, dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    dsn = postgres_server.create_database(name)
    yield dsn
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def docker_engine(supervisor: Supervisor) -> Engine:
    """The machine's Docker engine, started for the session only if none runs."""
    return docker_module.ensure(supervisor)


@pytest.fixture(scope="session")
def registry(supervisor: Supervisor, state_folder: Path) -> Registry:
    """An empty image registry on loopback."""
    return registry_module.start(supervisor, state_folder / "registry")


@pytest.fixture(scope="session")
def stack(
    supervisor: Supervisor,
    state_folder: Path,
    postgres_server: Postgres,
    docker_engine: Engine,
    registry: Registry,
) -> LocalStack:
    """The whole system: API server, toolbox host (DTMA, gateway) and operator, on the session's other parts.

    The API server is its own: this operator would answer to the objects of every other test, and hold the Lease.
    """
    cluster = kubernetes_module.start(supervisor, state_folder / "stack-kubernetes")
    cluster.install_crds()
    parts = Parts(cluster, postgres_server, docker_engine, registry)
    return stack_module.start_on(supervisor, parts, state_folder / "stack")

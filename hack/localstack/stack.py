"""The whole system on one machine: control plane, record, registry, a toolbox host and the operator."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from localstack import cache, docker, images, kubernetes, parallel, postgres, recipes, registry
from localstack.docker import Engine
from localstack.host import Host
from localstack.kubernetes import Cluster
from localstack.operator import Operator
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.progress import SetupError
from localstack.registry import Registry


@contextmanager
def workspace(prefix: str = "magic-toolbox-") -> Generator[Supervisor]:
    """A supervisor with a state folder of its own (`supervisor.folder`), both gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    # Unprivileged servers have to reach their own folders below it; what is secret has modes of its own.
    folder.chmod(0o755)
    # Processes of one test run do not replace each other's copies.
    kept = cache.root() / "logs" / f"last-failure{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    with Supervisor(folder / "logs", keep=kept) as supervisor:
        supervisor.leave_to_janitor({"folder": str(folder)}, late=True)
        yield supervisor


@dataclass(frozen=True, slots=True)
class Parts:
    """What the system stands on."""

    cluster: Cluster
    postgres: Postgres
    engine: Engine
    registry: Registry


@dataclass(slots=True)
class LocalStack:
    """A running system. Objects are applied by the cluster's admin; the operator has its own rights."""

    supervisor: Supervisor
    parts: Parts
    host: Host
    operator: Operator
    images: dict[str, str] = field(default_factory=dict[str, str])
    """Names of the examples' images in the local registry."""

    def image(self, name: str) -> str:
        """An example's image in the local registry, built if it is not there yet."""
        if name not in self.images:
            self.images[name] = images.ensure(self.supervisor, self.parts.engine, self.parts.registry, name)
        return self.images[name]


def check_machine() -> None:
    """A toolbox host needs Linux and root; says the line to run otherwise."""
    if os.uname().sysname != "Linux":
        raise SetupError("the local stack runs on Linux only")
    if os.geteuid() != 0:
        raise SetupError("the local stack needs root (Docker, firewall, switching users); run: sudo make demo")


def start(supervisor: Supervisor, folder: Path, *, operator_arguments: Sequence[str] = ()) -> LocalStack:
    """Starts everything at the same time as far as it is independent."""
    check_machine()
    found_cluster: list[Cluster] = []
    found_postgres: list[Postgres] = []
    found_engine: list[Engine] = []
    found_registry: list[Registry] = []
    found_images: dict[str, str] = {}
    host = Host(supervisor, folder / "host")

    def control_plane() -> None:
        cluster = kubernetes.start(supervisor, folder / "kubernetes")
        cluster.install_crds()
        cluster.install_operator_account()
        found_cluster.append(cluster)

    def record() -> None:
        found_postgres.append(postgres.start(supervisor, folder / "postgres"))

    def containers() -> None:
        engine = docker.ensure(supervisor)
        found_engine.append(engine)
        store = registry.start(supervisor, folder / "registry")
        found_registry.append(store)

        def image(name: str) -> None:
            found_images[name] = images.ensure(supervisor, engine, store, name)

        parallel.run(supervisor, [host.start, *(lambda name=name: image(name) for name in recipes.QUICKSTART)])

    parallel.run(supervisor, [control_plane, record, containers])
    parts = Parts(found_cluster[0], found_postgres[0], found_engine[0], found_registry[0])
    operator = Operator(supervisor, parts.cluster.operator_kubeconfig, parts.postgres.dsn(), extra=operator_arguments)
    operator.start()
    return LocalStack(supervisor, parts, host, operator, found_images)


def start_on(
    supervisor: Supervisor,
    parts: Parts,
    folder: Path,
    *,
    database_url: str | None = None,
    operator_arguments: Sequence[str] = (),
) -> LocalStack:
    """A host and an operator of its own on parts that run already."""
    check_machine()
    parts.cluster.install_operator_account()
    host = Host(supervisor, folder / "host")
    host.start()
    dsn = database_url or parts.postgres.dsn()
    operator = Operator(supervisor, parts.cluster.operator_kubeconfig, dsn, extra=operator_arguments)
    operator.start()
    return LocalStack(supervisor, parts, host, operator)

"""The whole installation in containers: operators as the Deployment runs them, a host as docs/install.md starts it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localstack import agent, quickstart
from localstack import images as example_images
from localstack.docker import Engine
from localstack.kubernetes import Manifest
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.quickstart import Target
from localstack.registry import Registry
from support import manifests
from support.install.container_host import ContainerHost
from support.install.installation import Account, Installation, Replica
from support.poll import until

NAMESPACE = "mcp-system"
TOOLBOX = Target("Toolbox", NAMESPACE, "tbx-1")
SERVER = Target("MCPServer", NAMESPACE, "quick")
CONNECTION = Target("AgentMCPConnection", NAMESPACE, "bot")
BEFORE = "operator-before"
"""The pod object that the operators' first token is bound to."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What every installation here stands on."""

    supervisor: Supervisor
    engine: Engine
    registry: Registry
    postgres: Postgres
    operator_image: str
    dtma_image: str
    label: str
    """Of every container; what has it is gone after the session, also after a crash."""


@dataclass(frozen=True, slots=True)
class System:
    """Everything, as containers."""

    installation: Installation
    account: Account
    replicas: tuple[Replica, ...]
    host: ContainerHost
    image: str
    """Of MCP servers."""
    dsn: str

    @property
    def engine(self) -> Engine:
        """The engine that all of it runs in."""
        return self.host.engine

    def leaders(self) -> list[Replica]:
        """The replicas that lead: one, or for a moment none."""
        return [replica for replica in self.replicas if replica.leads()]

    def await_leader(self) -> Replica:
        """The one that leads."""
        return until("one leader", self.leaders, lambda found: len(found) == 1, seconds=60)[0]

    def ready(self, *targets: Target) -> list[Manifest]:
        """The objects once they are Ready."""
        return [quickstart.wait_ready(self.installation.cluster, target, 90) for target in targets]

    def deploy(self) -> None:
        """From what `init` printed to a server with a connection, all Ready."""
        cluster = self.installation.cluster
        cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
        cluster.apply(self.host.manifests)
        self.ready(TOOLBOX)
        server = manifests.quick_server(NAMESPACE, SERVER.name, self.image)
        cluster.apply([server, manifests.connection(NAMESPACE, CONNECTION.name, SERVER.name)])
        self.ready(SERVER, CONNECTION)

    def secret(self) -> dict[str, str]:
        """The connection's Secret."""
        return quickstart.read_secret(self.installation.cluster, NAMESPACE, f"{CONNECTION.name}-mcp")

    def call(self) -> str:
        """What a tool answers to an agent that has nothing but the Secret."""
        with agent.readable_errors():
            return asyncio.run(agent.call(self.secret(), "echo", {"said": "hello"})).text


@contextmanager
def started(ground: Ground, installation: Installation, folder: Path, *, replicas: int) -> Generator[System]:
    """Operators and a host on an installation, until the end of the block."""
    dsn = ground.postgres.create_database(f"install_{secrets.token_hex(4)}")
    account = Account.make(folder / "account", installation.cluster, installation.token(BEFORE))
    flags = [f"--label={ground.label}", *account.flags(installation.cluster)]
    operators = tuple(Replica(ground.engine, f"mt-operator-{secrets.token_hex(4)}", flags) for _ in range(replicas))
    place = Path("/run") / f"mt-{secrets.token_hex(4)}"
    ground.supervisor.leave_to_janitor({"folder": str(place)}, late=True)
    host = ContainerHost(ground.engine, ground.supervisor, ground.dtma_image, ground.label, place)
    for replica in operators:
        replica.start(installation, ground.operator_image, dsn=dsn)
    host.init()
    host.start()
    image = example_images.ensure(ground.supervisor, ground.engine, ground.registry, "hello")
    for replica in operators:
        replica.await_ready()
    yield System(installation, account, operators, host, image, dsn)
    for replica in operators:
        ground.engine.docker("rm", "--force", replica.name)
    host.remove()

"""The system under measurement: laid out as in production, with production's delays, on the local stack's parts."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localstack import kubernetes as kubernetes_module
from localstack.docker import SOCKET, Engine
from localstack.host import Host, Settings
from localstack.kubernetes import Cluster, Manifest
from localstack.operator import Operator
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.registry import Registry
from localstack.stack import LocalStack, Parts, check_machine
from support.kubernetes.api import path_of
from support.kubernetes.watch import KeptApi, Watch, is_gone, is_ready
from support.poll import until
from support.system.space import SYSTEM, TOOLBOX, toolbox_documents
from support.system.world import World

SERVER, CONNECTION = "MCPServer", "AgentMCPConnection"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured. `BENCH_QUICK=1` makes a run of minutes one of seconds, whose figures mean nothing."""

    quick: bool
    applies: int = 10
    kills: int = 100
    kill_servers: int = 25
    revokes: int = 100
    calls: int = 3000
    paced_seconds: int = 15
    loop_seconds: float = 4.5
    idle_sessions: int = 1000
    streamed_bytes: int = 50_000_000
    dense_bodies: int = 20
    fleet: tuple[int, ...] = (0, 100, 500)
    session_starts: int = 8
    session_cycles: int = 1000
    idle_seconds: float = 60.0

    @staticmethod
    def chosen() -> Size:
        """By the environment."""
        if not os.environ.get("BENCH_QUICK"):
            return Size(False)
        return Size(
            quick=True,
            applies=2,
            kills=6,
            kill_servers=3,
            revokes=6,
            calls=300,
            paced_seconds=3,
            loop_seconds=1.5,
            idle_sessions=50,
            streamed_bytes=5_000_000,
            dense_bodies=3,
            fleet=(0, 20),
            session_starts=2,
            session_cycles=20,
            idle_seconds=6.0,
        )


def start(supervisor: Supervisor, folder: Path, postgres: Postgres, engine: Engine, registry: Registry) -> World:
    """API server, host with two gateway workers, and operator of its own; its Toolbox Ready."""
    check_machine()
    cluster = kubernetes_module.start(supervisor, folder / "bench-kubernetes")
    cluster.install_crds()
    cluster.install_operator_account()
    host = Host(supervisor, folder / "bench-host", Settings(gateway_workers=2))
    host.start()
    dsn = postgres.create_database(f"bench_{secrets.token_hex(4)}")
    operator = Operator(supervisor, cluster.operator_kubeconfig, dsn)
    operator.start()
    world = World(LocalStack(supervisor, Parts(cluster, postgres, engine, registry), host, operator))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
    cluster.apply([namespace, *toolbox_documents(host.manifests, leaseDuration="40s")])
    world.await_condition(TOOLBOX, "Ready", "True")
    return world


@dataclass(frozen=True, slots=True)
class Bench:
    """One measurement's own namespace, with watches on it."""

    world: World
    kube: KeptApi
    namespace: str
    servers: Watch
    connections: Watch

    def path(self, kind: str, name: str = "") -> str:
        """The path of our objects of a kind in the namespace, or of one of them."""
        return path_of(kind, self.namespace, name)

    def create(self, document: Manifest) -> Manifest:
        """Creates a server or a connection."""
        return self.kube.request("POST", self.path(document["kind"]), document)

    def ready(self, document: Manifest, seconds: float = 90.0) -> Manifest:
        """Creates an object and waits until it is Ready."""
        self.create(document)
        watch = self.servers if document["kind"] == SERVER else self.connections
        return watch.first(document["metadata"]["name"], is_ready, seconds=seconds).body

    def remove_server(self, name: str) -> None:
        """Deletes a server and waits until it is gone."""
        self.kube.request("DELETE", self.path(SERVER, name))
        self.servers.first(name, is_gone)

    def await_records(self, seconds: float = 180.0) -> None:
        """Waits until the record has every call of before: taking them over is work on the same cores."""
        host = self.world.stack.host
        until("call records held", lambda: host.metric("dtma_calls_held"), lambda held: held == 0, seconds=seconds)

    def secret(self, connection: str) -> dict[str, str]:
        """A connection's Secret."""
        found = self.world.secret(self.namespace, f"{connection}-mcp")
        assert found is not None
        return found


@contextmanager
def bench(world: World) -> Generator[Bench]:
    """A fresh namespace, gone at the end with everything in it."""
    cluster = world.stack.parts.cluster
    namespace = f"bench-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", namespace)
    kube = KeptApi(cluster)
    servers, connections = path_of(SERVER, namespace), path_of(CONNECTION, namespace)
    try:
        with kube.watch(servers) as seen_servers, kube.watch(connections) as seen_connections:
            yield Bench(world, kube, namespace, seen_servers, seen_connections)
    finally:
        kube.close()
        cluster.kubectl("delete", "namespace", namespace, "--timeout=120s", seconds=130)


class OverUnixSocket(http.client.HTTPConnection):
    """A connection to the Docker Engine of this machine."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(SOCKET))


def kill_container(container: str) -> None:
    """What `docker kill` does, without the start of its command line client."""
    connection = OverUnixSocket("localhost", timeout=30)
    try:
        connection.request("POST", f"/containers/{container}/kill")
        answer = connection.getresponse()
        assert answer.status == 204, answer.read()
    finally:
        connection.close()


def versions(cluster: Cluster, engine: Engine, postgres: str) -> list[tuple[str, str]]:
    """What the system runs on."""
    kubernetes = json.loads(cluster.kubectl("get", "--raw", "/version"))["gitVersion"]
    return [("Kubernetes", kubernetes), ("Docker Engine", engine.version), ("PostgreSQL", postgres)]

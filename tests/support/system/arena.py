"""A system whose operators reach the Kubernetes API, and the host, only through proxies that tests program."""

from __future__ import annotations

import secrets
import ssl
from base64 import b64encode
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localstack import certificates
from localstack import kubernetes as kubernetes_module
from localstack.host import Host
from localstack.kubernetes import kubeconfig
from localstack.operator import Operator
from localstack.processes import Supervisor
from localstack.stack import LocalStack, Parts
from support.kubernetes.api import Access, KubeApi
from support.poll import until
from support.proxies.api_proxy import ApiProxy
from support.proxies.faults import Cut, Fail, Match, Request, Silence
from support.system.replica import Replica
from support.system.space import SYSTEM, TOOLBOX, Space, toolbox_documents
from support.system.witness import witness
from support.system.world import World

LEASE = ("--timing=lease_duration=10", "--timing=lease_renew_deadline=7", "--timing=lease_retry=0.5")
PATIENT_LEASE = ("--timing=lease_duration=15", "--timing=lease_renew_deadline=10")
"""For tests in which no leader is lost: with `LEASE` a busy machine may have one end."""
BACKOFF = ("--timing=backoff_max=2", "--timing=ref_retry=1")
RESYNC = 4.0
"""Seconds between two complete lists of the operators here."""
DEFAULTS = (*LEASE, *BACKOFF, f"--timing=resync={RESYNC:g}")


@dataclass(frozen=True, slots=True)
class Watched:
    """An operator and the proxy it reaches the Kubernetes API through."""

    replica: Replica
    proxy: ApiProxy


@dataclass(frozen=True, slots=True)
class Arena:
    """API server, host and record of its own; operators are started by tests."""

    world: World
    api: KubeApi
    """Straight to the API server, as admin."""
    host_proxy: ApiProxy
    """Before the host's management API: what the Toolbox's endpoint is."""
    account: Access
    """The operator's service account."""
    folder: Path

    @property
    def dsn(self) -> str:
        """Of the record."""
        found = self.world.stack.operator.database_url
        assert found is not None
        return found

    @contextmanager
    def operator(
        self,
        name: str,
        arguments: Sequence[str] = (),
        *,
        dsn: str | None = None,
        program: Sequence[str] = ("-m", "toolbox_operator"),
        restart: bool = True,
    ) -> Generator[Watched]:
        """A process of the operator behind a proxy of its own, started; stopped at the end."""
        with ApiProxy(self.account.server, self.account.trust) as proxy:
            config = self.folder / f"{name}.kubeconfig"
            text = kubeconfig(proxy.url, b64encode(self.account.ca.encode()).decode(), self.account.token)
            certificates.write_secret(config, text.encode())
            supervisor = self.world.stack.supervisor
            given = (*DEFAULTS, *arguments)
            replica = Replica(supervisor, name, config, dsn or self.dsn, given, program=program, restart=restart)
            with replica:
                yield Watched(replica, proxy)
                # No fault may stand in the way of an orderly end.
                proxy.clear()


def build(supervisor: Supervisor, parts: Callable[[Path], Parts], folder: Path, dsn: str) -> Generator[Arena]:
    """Starts API server and host; applies the Toolbox, which nobody reconciles yet."""
    found = parts(folder / "kubernetes")
    found.cluster.install_crds()
    found.cluster.install_operator_account()
    host = Host(supervisor, folder / "host")
    host.start()
    server_files = folder / "host-proxy"
    server_files.mkdir()
    files = certificates.make_server_files(server_files)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.certificate, files.key)
    behind = ssl.create_default_context(cafile=str(host.ca_file))
    with ApiProxy(f"https://127.0.0.1:{host.management_port}", behind, tls=tls) as host_proxy:
        operator = Operator(supervisor, found.cluster.operator_kubeconfig, dsn)
        world = World(LocalStack(supervisor, found, host, operator))
        spec: dict[str, Any] = {
            "endpoint": host_proxy.url,
            "caSecretRef": {"name": "host-proxy-ca", "key": "ca.crt"},
        }
        ca = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "host-proxy-ca", "namespace": SYSTEM},
            "stringData": {"ca.crt": files.ca.read_text()},
        }
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
        found.cluster.apply([namespace, ca, *toolbox_documents(host.manifests, **spec)])
        admin = KubeApi(Access.read(found.cluster.admin_kubeconfig))
        yield Arena(world, admin, host_proxy, Access.read(found.cluster.operator_kubeconfig), folder)


def start_cluster(supervisor: Supervisor, folder: Path) -> kubernetes_module.Cluster:
    """An API server of its own."""
    return kubernetes_module.start(supervisor, folder)


def on(resource: str, *verbs: str, name: str = "", namespace: str = "", subresource: str | None = None) -> Match:
    """Requests for a resource (plural), narrowed by what is given."""

    def matches(request: Request) -> bool:
        return (
            request.resource == resource
            and (not verbs or request.verb in verbs)
            and name in ("", request.name)
            and namespace in ("", request.namespace)
            and subresource in (None, request.subresource)
        )

    return matches


WATCHED = ("toolboxes", "mcpservers", "agentmcpconnections", "secrets", "leases")


def interrupt(proxy: ApiProxy, action: Silence | Cut | Fail, *resources: str) -> None:
    """Do it to the watches of these resources, all of them without any, once they are open."""
    for resource in resources or WATCHED:
        until(f"a watch of {resource}", lambda r=resource: proxy.interrupt(r, action))


def await_toolbox(arena: Arena) -> None:
    """Until the Toolbox is Ready."""
    arena.world.await_condition(TOOLBOX, "Ready", "True", seconds=90)


@contextmanager
def namespace(arena: Arena) -> Generator[Space]:
    """A fresh namespace, whose objects are deleted at the end, and leave nothing.

    All the time, no instance may have had two running containers. Unlike `support.system.space.opened` this doesn't
    wait for the end of the namespace itself: what is tested here ends with the objects.
    """
    world, name = arena.world, f"fault-{secrets.token_hex(4)}"
    cluster = world.stack.parts.cluster
    arena.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    with witness(("docker",), world.stack.host.host_id) as seen:
        try:
            yield Space(world, name, seen)
        finally:
            cluster.kubectl("delete", "amc,mcps,tbx", "--all", "--timeout=90s", "-n", name, seconds=100)
            arena.api.request("DELETE", f"/api/v1/namespaces/{name}")
        until("no container left", lambda: world.containers_of(name), lambda left: not left)
        until("no grant left", lambda: world.grants_of(name), lambda left: not left)
        until("rows closed", lambda: world.open_rows(name), lambda left: not left)
    assert seen.doubles == []

"""What the operator costs while nothing happens, by the number of servers; and how fast it gets there."""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from localstack import kubernetes as kubernetes_module
from localstack.kubernetes import OPERATOR_NAMESPACE, REPOSITORY, Cluster
from localstack.operator import Operator
from localstack.postgres import Postgres
from localstack.processes import Child, Command, Supervisor
from support import manifests
from support.bench.measure import Report, Section
from support.bench.simulated_hosts import READY_FILE, toolboxes
from support.bench.system import CONNECTION, SERVER, Size
from support.kubernetes.api import GROUP_ROOT, PLURALS, path_of
from support.kubernetes.watch import KeptApi, Watch, is_ready
from support.poll import until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

HOSTS = 10
SERVERS_PER_CONNECTION = 5
NAMESPACE = "fleet"
WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
LEASES = "leases"
QUIET = 2.0
"""Seconds without a write after which nothing more is expected."""

METHOD = """
{hosts} hosts that are real DTMAs behind their real API over TLS, in one process of their own, whose containers and
gateway workers are simulated (each server has 12 tools, and a fifth of them a connection); a real API server and
PostgreSQL for the real operator, alone on them, started anew for this. All Ready: from the first of the new objects
being created, by four clients, to the last being Ready. Then {idle:.0f} s without any change: requests that the API
server counted from anybody, watches left out, writes that are not the Lease's, and objects of ours, Secrets and
Events included, whose resourceVersion moved. RSS at the end of it; CPU is the operator's own. Restart: SIGTERM, and a
new process until it leads, has seen every object, is in contact with every host and has nothing left to do.
"""
HEADER = (
    "servers",
    "connections",
    "all Ready (s)",
    "RSS (MiB)",
    "CPU when idle (%)",
    "reads per minute",
    "Lease writes per minute",
    "other writes",
    "moved objects",
    "restart (s)",
)


def _metrics(text: str, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """A metric's values, summed up by some of its labels."""
    found: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels.get(label, "") for label in labels)] += int(sample.value)
    return found


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process used."""

    rss_mib: float
    cpu_seconds: float

    @staticmethod
    def of(pid: int) -> Usage:
        """Of a running process."""
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return Usage(rss / 1024, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, slots=True)
class Idle:
    """What happened while nothing did."""

    rss_mib: float
    cpu_share: float
    minutes: float
    reads: int
    lease_writes: int
    other_writes: Mapping[tuple[str, ...], int]
    moved: int


@dataclass(slots=True)
class Fleet:
    """Simulated hosts and the operator that serves them."""

    cluster: Cluster
    operator: Operator
    kube: KeptApi
    servers: Watch
    connections: Watch
    size: int = 0

    @property
    def child(self) -> Child:
        """The operator's process."""
        assert self.operator.child is not None
        return self.operator.child

    def grow(self, to: int) -> float:
        """Adds servers, and connections to some, until there are so many; seconds until all are Ready."""
        new = range(self.size, to)
        begin = time.monotonic()
        threads = [threading.Thread(target=self._create, args=(new[part::4],)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = begin
        for number in new:
            last = max(last, self.servers.first(f"server-{number}", is_ready, seconds=240).at)
            if number % SERVERS_PER_CONNECTION == 0:
                last = max(last, self.connections.first(f"agent-{number}", is_ready, seconds=240).at)
        self.size = to
        return last - begin

    def _create(self, numbers: range) -> None:
        kube = KeptApi(self.cluster)
        for number in numbers:
            toolbox = {"name": f"host-{number % HOSTS}"}
            name, image = f"server-{number}", "registry.example.com/team/server:1.0"
            server = manifests.server(NAMESPACE, name, image, toolboxRef=toolbox)
            kube.request("POST", path_of(SERVER, NAMESPACE), server)
            if number % SERVERS_PER_CONNECTION == 0:
                connection = manifests.connection(NAMESPACE, f"agent-{number}", name, agent=f"agent-{number}")
                kube.request("POST", path_of(CONNECTION, NAMESPACE), connection)
        kube.close()

    def own_metrics(self) -> str:
        """What the operator tells."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.operator.metrics_port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def at_rest(self) -> bool:
        """Whether nothing is due or under way."""
        text = self.own_metrics()
        names = ("magic_toolbox_queue_depth", "magic_toolbox_queue_aside", "magic_toolbox_reconciles_running")
        busy = sum(sum(_metrics(text, name).values()) for name in names)
        return busy == 0 and _metrics(text, "magic_toolbox_record_backlog").total() == 0

    def settle(self) -> None:
        """Waits until nothing is due, and no Event is on its way."""

        def quiet() -> bool:
            before = self._requests()
            # Events are written slowly, one by one.
            threading.Event().wait(QUIET)
            return self.at_rest() and not _others(_writes(self._requests() - before))

        until("at rest", quiet, seconds=240)

    def rest(self, seconds: float) -> Idle:
        """Looks at a stretch without changes."""
        versions, requests, used = self._versions(), self._requests(), Usage.of(self.child.pid)
        begin = time.monotonic()
        # Nothing is waited for: that nothing happens is what is measured.
        threading.Event().wait(seconds)
        lasted = time.monotonic() - begin
        used_now, made = Usage.of(self.child.pid), self._requests() - requests
        writes = _writes(made)
        reads = made.total() - writes.total() - _watches(made)
        return Idle(
            rss_mib=used_now.rss_mib,
            cpu_share=(used_now.cpu_seconds - used.cpu_seconds) / lasted,
            minutes=lasted / 60,
            reads=reads,
            lease_writes=writes.total() - _others(writes).total(),
            other_writes=_others(writes),
            moved=len(set(versions.items()) ^ set(self._versions().items())),
        )

    def restart(self) -> float:
        """Seconds from the start of a new process to having nothing to do."""
        self.child.stop()
        begin = time.monotonic()
        self.operator.start()

        def steady() -> bool:
            text = self.own_metrics()
            contacts = _metrics(text, "magic_toolbox_host_calls_total", "call", "outcome")["list_grants", "ok"]
            reconciled = _metrics(text, "magic_toolbox_reconcile_seconds_count", "kind")[("MCPServer",)]
            return contacts >= HOSTS and reconciled >= self.size and self.at_rest()

        until("steady", steady, seconds=120)
        return time.monotonic() - begin

    def _requests(self) -> Counter[tuple[str, ...]]:
        return _metrics(self.kube.raw("GET", "/metrics").decode(), "apiserver_request_total", "verb", "resource")

    def _versions(self) -> dict[str, str]:
        paths = [f"{GROUP_ROOT}/{plural}" for plural in PLURALS.values()]
        paths += ["/api/v1/secrets", "/apis/events.k8s.io/v1/events"]
        items = [item["metadata"] for path in paths for item in self.kube.request("GET", path)["items"]]
        return {item["uid"]: item["resourceVersion"] for item in items}


def _writes(requests: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    return Counter({key: count for key, count in requests.items() if key[0] in WRITES and count})


def _others(writes: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    return Counter({key: count for key, count in writes.items() if key[1] != LEASES})


def _watches(requests: Counter[tuple[str, ...]]) -> int:
    return sum(count for (verb, _), count in requests.items() if verb == "WATCH")


@pytest.fixture
def fleet(supervisor: Supervisor, state_folder: Path, postgres_server: Postgres) -> Generator[Fleet]:
    """The hosts with their Toolboxes Ready, and no server yet."""
    folder = state_folder / "fleet"
    folder.mkdir()
    argv = [sys.executable, "-m", "support.bench.simulated_hosts", str(folder), str(HOSTS)]
    path = ":".join(str(REPOSITORY / part) for part in ("operator", "dtma", "hack", "tests"))
    hosts = supervisor.start(Command("simulated-hosts", argv, env={"PYTHONPATH": path}))
    cluster = kubernetes_module.start(supervisor, folder / "kubernetes")
    cluster.install_crds()
    cluster.install_operator_account()
    ready = folder / READY_FILE
    hosts.wait_until(ready.exists, 60, "serving")
    database = postgres_server.create_database(f"fleet_{secrets.token_hex(4)}")
    operator = Operator(supervisor, cluster.operator_kubeconfig, database)
    operator.start()
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    cluster.apply([namespace, *toolboxes(NAMESPACE, json.loads(ready.read_text()))])
    cluster.kubectl("wait", "--for=condition=Ready", "toolbox", "--all", "-n", NAMESPACE, "--timeout=60s", seconds=75)
    kube = KeptApi(cluster)
    with (
        kube.watch(path_of(SERVER, NAMESPACE)) as servers,
        kube.watch(path_of(CONNECTION, NAMESPACE)) as connections,
    ):
        yield Fleet(cluster, operator, kube, servers, connections)
    kube.close()
    for child in (operator.child, hosts):
        if child is not None:
            child.stop()


def _row(section: Section, fleet: Fleet, took: float, idle: Idle, restart: float) -> None:
    per_minute = (f"{count / idle.minutes:.0f}" for count in (idle.reads, idle.lease_writes))
    other = ", ".join(f"{verb} {resource}: {count}" for (verb, resource), count in idle.other_writes.items()) or "0"
    section.add(
        str(fleet.size),
        str(-(-fleet.size // SERVERS_PER_CONNECTION)),
        f"{took:.1f}",
        f"{idle.rss_mib:.0f}",
        f"{idle.cpu_share:.1%}",
        *per_minute,
        other,
        str(idle.moved),
        f"{restart:.1f}",
        met=not idle.other_writes and not idle.moved,
    )


def test_an_idle_operator_writes_nothing_but_its_lease_at_any_number_of_servers(
    fleet: Fleet, size: Size, report: Report
) -> None:
    method = METHOD.format(hosts=HOSTS, idle=size.idle_seconds)
    section = report.section("Operator when idle", method, HEADER)
    for servers in size.fleet:
        took = fleet.grow(servers) if servers else 0.0
        fleet.settle()
        idle = fleet.rest(size.idle_seconds)
        _row(section, fleet, took, idle, fleet.restart())
        fleet.settle()
    section.check()
    assert fleet.cluster.get("lease", "-n", OPERATOR_NAMESPACE)["items"]

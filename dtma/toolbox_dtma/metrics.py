"""Numbers of DTMA for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from toolbox_dtma.call_metrics import CallMetrics
from toolbox_dtma.link.messages import Cut

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read off at every scrape."""

    phases: Mapping[str, int]
    grants: int
    grants_pending: int
    sessions: int
    reserved_memory_bytes: int
    reserved_cpu_millis: int
    policy_revision: int
    workers: int
    workers_current: int
    tombstones: int
    boot_id: int
    calls_held: int
    calls_dropped: int
    certificate_expiry: float
    """When the management certificate ends, in seconds of Unix time."""
    certificate_refused: bool
    """Whether its files hold another pair, which cannot be used."""
    gateway_connections: int
    gateway_certificate_expiry: float | None
    """Of the worker whose certificate ends first; None while none has told."""
    gateway_certificate_refused: bool


class _Scrape(Collector):
    def __init__(self, read: Callable[[], Gauges]):
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        gauges = self._read()
        phases = GaugeMetricFamily("dtma_instances", "Instances by phase.", labels=["phase"])
        for phase, number in sorted(gauges.phases.items()):
            phases.add_metric([phase], number)
        yield phases
        for name, text, value in (
            ("dtma_grants", "Grants held.", gauges.grants),
            ("dtma_grants_pending", "Grants not yet acknowledged by every worker.", gauges.grants_pending),
            ("dtma_sessions", "Open sessions of stdio and SSE servers, those of probes not counted.", gauges.sessions),
            ("dtma_reserved_memory_bytes", "Memory that limits let all servers take.", gauges.reserved_memory_bytes),
            ("dtma_reserved_cpus", "CPUs that limits let all servers take.", gauges.reserved_cpu_millis / 1000),
            ("dtma_policy_revision", "Revision of the gateway's policy.", gauges.policy_revision),
            ("dtma_gateway_workers", "Connected gateway workers.", gauges.workers),
            ("dtma_gateway_workers_current", "Gateway workers at the present revision.", gauges.workers_current),
            ("dtma_tombstones", "Tombstones held.", gauges.tombstones),
            ("dtma_calls_held", "Call records that their owners have not fetched.", gauges.calls_held),
            ("dtma_calls_dropped", "Call records lost for want of space, ever.", gauges.calls_dropped),
            ("dtma_boot_id", "How often DTMA started.", gauges.boot_id),
            (
                "dtma_certificate_expiry_seconds",
                "Unix time the certificate ends at.",
                gauges.certificate_expiry,
            ),
            (
                "dtma_certificate_refused",
                "1 while the certificate's files hold a pair that cannot be used.",
                gauges.certificate_refused,
            ),
            ("dtma_gateway_connections", "Clients' connections to the gateway.", gauges.gateway_connections),
            (
                "dtma_gateway_certificate_refused",
                "The same of the gateway's files.",
                gauges.gateway_certificate_refused,
            ),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        if gauges.gateway_certificate_expiry is not None:
            yield GaugeMetricFamily(
                "dtma_gateway_certificate_expiry_seconds",
                "Unix time the gateway's certificate ends at.",
                value=gauges.gateway_certificate_expiry,
            )


class Metrics:
    """One registry per process part, so that tests do not share numbers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dtma_requests", "Management API requests.", ["method", "route", "status"], registry=self._registry
        )
        self._acks = Histogram(
            "dtma_policy_ack_seconds",
            "From a policy change to the last worker's acknowledgement.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 30),
            registry=self._registry,
        )
        self.calls = CallMetrics(self._registry)
        self._instances: Container[str] = ()

        self._cuts = Counter(
            "dtma_gateway_clients_cut",
            "Clients that the gateway refused or cut off before or beside a request.",
            ["reason"],
            registry=self._registry,
        )

    def expose(self, read: Callable[[], Gauges], instances: Container[str]) -> None:
        """Read gauges from here at every scrape; numbers of other than these instances are forgotten."""
        self._instances = instances
        self._registry.register(_Scrape(read))

    def request(self, method: str, route: str, status: int) -> None:
        """A request was answered. `route` is the template, never the path: paths are unbounded."""
        self._requests.labels(method, route, str(status)).inc()

    def ack(self, seconds: float) -> None:
        """A revision came in force."""
        self._acks.observe(seconds)

    def cuts(self, reason: Cut, number: int) -> None:
        """So many clients were cut off by a worker."""
        self._cuts.labels(reason.value).inc(number)

    def render(self) -> bytes:
        """The text for a scrape."""
        self.calls.keep(self._instances)
        return generate_latest(self._registry)


def tally(values: Iterable[str]) -> Mapping[str, int]:
    """How often each value occurs."""
    return Tally(values)

"""Prometheus metrics of the operator, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Pulled:
    """How the pulling of one host's call records is."""

    toolbox: str
    age: float | None
    """Seconds since the newest batch was kept; None: none was yet."""
    dropped: int
    supported: bool


class _Pulls(Collector):
    """Metrics by Toolbox: of those there are now, so that one that is gone leaves nothing behind."""

    def __init__(self, pulls: Callable[[], Iterable[Pulled]]) -> None:
        self._pulls = pulls

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        age = GaugeMetricFamily(
            "magic_toolbox_calls_pull_age_seconds",
            "Since call records of a host were last asked for, answered and kept",
            labels=("toolbox",),
        )
        dropped = GaugeMetricFamily(
            "magic_toolbox_calls_dropped",
            "Call records that a host lost for want of space, by its own word",
            labels=("toolbox",),
        )
        supported = GaugeMetricFamily(
            "magic_toolbox_calls_supported", "0: the host's agent is too old to keep any", labels=("toolbox",)
        )
        for pulled in self._pulls():
            labels = (pulled.toolbox,)
            supported.add_metric(labels, float(pulled.supported))
            dropped.add_metric(labels, pulled.dropped)
            if pulled.age is not None:
                age.add_metric(labels, pulled.age)
        return iter((age, dropped, supported))


class Metrics:
    """Every metric; one method for each thing that happens."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._reconciles = Histogram(
            "magic_toolbox_reconcile_seconds",
            "Duration of reconciles by kind and outcome",
            ("kind", "outcome"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._depth = Gauge(
            "magic_toolbox_queue_depth", "Keys that are due, by kind", ("kind",), registry=self.registry
        )
        self._delayed = Gauge(
            "magic_toolbox_queue_delayed", "Keys that wait for a time, by kind", ("kind",), registry=self.registry
        )
        self._aside = Gauge(
            "magic_toolbox_queue_aside",
            "Due keys that wait for others of their host, by kind",
            ("kind",),
            registry=self.registry,
        )
        self._running = Gauge(
            "magic_toolbox_reconciles_running", "Reconciles under way, by kind", ("kind",), registry=self.registry
        )
        self._api = Counter(
            "magic_toolbox_api_requests_total",
            "Requests to the Kubernetes API by method and status; 0 means no answer",
            ("method", "status"),
            registry=self.registry,
        )
        self._hosts = Counter(
            "magic_toolbox_host_calls_total",
            "Calls to hosts by call and outcome",
            ("call", "outcome"),
            registry=self.registry,
        )
        self._events = Counter(
            "magic_toolbox_watch_events_total", "Watch events by kind", ("kind",), registry=self.registry
        )
        self._dropped = Counter(
            "magic_toolbox_events_dropped_total", "Kubernetes Events that were not written", registry=self.registry
        )
        self._calls = Counter(
            "magic_toolbox_calls_total", "Call records taken over from hosts, each once", registry=self.registry
        )
        self._calls_refused = Counter(
            "magic_toolbox_calls_refused_total",
            "Call records that are not kept, by reason: clock, unreadable or data",
            ("reason",),
            registry=self.registry,
        )
        self._leader = Gauge("magic_toolbox_leader", "1 while this process leads", registry=self.registry)
        self._objects = Gauge("magic_toolbox_objects", "Objects known, by kind", ("kind",), registry=self.registry)

    def reconciled(self, kind: str, outcome: str, seconds: float) -> None:
        """A reconcile ended."""
        self._reconciles.labels(kind, outcome).observe(seconds)

    def watch_queue(
        self,
        kind: str,
        *,
        depth: Callable[[], int],
        delayed: Callable[[], int],
        aside: Callable[[], int],
        running: Callable[[], int],
    ) -> None:
        """Read a queue's numbers whenever metrics are read."""
        self._depth.labels(kind).set_function(depth)
        self._delayed.labels(kind).set_function(delayed)
        self._aside.labels(kind).set_function(aside)
        self._running.labels(kind).set_function(running)

    def watch_objects(self, kind: str, count: Callable[[], int]) -> None:
        """Read the number of known objects whenever metrics are read."""
        self._objects.labels(kind).set_function(count)

    def watch_leader(self, leading: Callable[[], bool]) -> None:
        """Read whether this process leads whenever metrics are read."""
        self._leader.set_function(lambda: float(leading()))

    def api_request(self, method: str, status: int) -> None:
        """The API server answered, or didn't (0)."""
        self._api.labels(method, str(status)).inc()

    def host_call(self, call: str, outcome: str) -> None:
        """A call to a host ended; `outcome` is ok or the error's short name."""
        self._hosts.labels(call, outcome).inc()

    def watch_event(self, kind: str) -> None:
        """A watch delivered an event."""
        self._events.labels(kind).inc()

    def calls_added(self, number: int) -> None:
        """Call records were taken over."""
        self._calls.inc(number)

    def calls_refused(self, reason: str, number: int) -> None:
        """Call records were not acceptable."""
        self._calls_refused.labels(reason).inc(number)

    def watch_pulls(self, pulls: Callable[[], Iterable[Pulled]]) -> None:
        """Read how the pulling of call records is whenever metrics are read."""
        self.registry.register(_Pulls(pulls))

    def event_dropped(self) -> None:
        """A Kubernetes Event was given up."""
        self._dropped.inc()

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

"""Numbers about calls for Prometheus, fed from their records."""

from __future__ import annotations

from collections.abc import Container, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from toolbox_dtma.link.calls import REFUSAL_REASONS, CallEntry

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds."""


class CallMetrics:
    """Counters by instance. Labels are instances of this host, and go with them."""

    def __init__(self, registry: CollectorRegistry):
        self._calls = Counter(
            "dtma_calls", "Calls of tools, by how they ended.", ["instance", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "dtma_call_seconds", "Duration of calls of tools.", ["instance"], buckets=BUCKETS, registry=registry
        )
        self._bytes = Counter(
            "dtma_call_bytes", "Bytes of calls and of their answers.", ["instance", "direction"], registry=registry
        )
        self._refusals = Counter(
            "dtma_gateway_refusals", "Requests that the gateway answered by itself.", ["reason"], registry=registry
        )
        self._lost = Counter(
            "dtma_calls_lost", "Calls that cannot be told whose they were.", ["why"], registry=registry
        )
        self._labels: dict[str, set[str]] = {}
        """Outcomes seen, by instance."""

    def call(self, instance: str, entry: CallEntry) -> None:
        """A call of an instance that is on this host."""
        self._labels.setdefault(instance, set()).add(entry.outcome)
        self._calls.labels(instance, entry.outcome).inc()
        self._seconds.labels(instance).observe(entry.duration_ms / 1000)
        self._bytes.labels(instance, "in").inc(entry.bytes_in)
        self._bytes.labels(instance, "out").inc(entry.bytes_out)

    def refusals(self, counts: Mapping[str, int]) -> None:
        """Requests that were refused since the last time."""
        for reason, count in counts.items():
            self._refusals.labels(reason if reason in REFUSAL_REASONS else "other").inc(count)

    def lost(self, why: str, count: int) -> None:
        """Calls without an owner: `killed` workers had them in hand, or their connection is `unknown`."""
        if count:
            self._lost.labels(why).inc(count)

    def keep(self, instances: Container[str]) -> None:
        """Forget all others."""
        for instance in [known for known in self._labels if known not in instances]:
            for outcome in self._labels.pop(instance):
                self._calls.remove(instance, outcome)
            self._seconds.remove(instance)
            for direction in ("in", "out"):
                self._bytes.remove(instance, direction)

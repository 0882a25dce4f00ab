"""What the writer tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class RecordMetrics:
    """Metrics of the record, in the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._up = Gauge("magic_toolbox_record_up", "1 while rows are being written", registry=registry)
        self._backlog = Gauge(
            "magic_toolbox_record_backlog", "Rows, events and sweeps that are not written yet", registry=registry
        )
        self._refused = Gauge(
            "magic_toolbox_record_refused", "Rows that PostgreSQL does not take as they are", registry=registry
        )
        self._written = Counter(
            "magic_toolbox_record_rows_total", "Rows and events handed to PostgreSQL and committed", registry=registry
        )
        self._errors = Counter(
            "magic_toolbox_record_errors_total",
            "Transactions that failed, by what is done next: wait, again or refuse",
            ("next",),
            registry=registry,
        )
        self._dropped = Gauge(
            "magic_toolbox_record_dropped_events", "Lifecycle events given up since the start", registry=registry
        )

    def watch(
        self,
        *,
        up: Callable[[], bool],
        backlog: Callable[[], int],
        refused: Callable[[], int],
        dropped: Callable[[], int],
    ) -> None:
        """Read these whenever metrics are read."""
        self._up.set_function(lambda: float(up()))
        self._backlog.set_function(backlog)
        self._refused.set_function(refused)
        self._dropped.set_function(dropped)

    def written(self, rows: int) -> None:
        """A transaction was committed."""
        self._written.inc(rows)

    def failed(self, next_: str) -> None:
        """A transaction failed."""
        self._errors.labels(next_).inc()

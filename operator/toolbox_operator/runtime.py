"""What reconcilers are given: effects behind protocols, injected once at start."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from toolbox_operator.api.meta import Key, Kind


class Fenced(Exception):
    """Leadership is lost or another leader is ahead: write nothing, drop the key."""


class Clock(Protocol):
    """Time, replaceable in tests."""

    def now(self) -> datetime:
        """Wall clock, aware, UTC: for what people read and for expiry."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump: for leases and delays."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class Leadership(Protocol):
    """Whether this process may write, and with which fence."""

    @property
    def owner(self) -> str:
        """UID of the cluster's `kube-system` namespace."""
        ...

    @property
    def epoch(self) -> int:
        """leaseTransitions of the Lease this process holds."""
        ...

    def check(self) -> None:
        """Raises `Fenced` when the lease's deadline has passed on the monotonic clock."""
        ...

    async def raise_epoch(self, above: int) -> None:
        """A host knows a higher epoch while we hold the Lease: raise the Lease's above it, then claim again."""
        ...


class Requeue(Protocol):
    """Puts keys into the work queues."""

    def add(self, kind: Kind, key: Key) -> None:
        """Reconcile soon; beats any back-off."""
        ...

    def add_after(self, kind: Kind, key: Key, seconds: float) -> None:
        """Reconcile no earlier than in `seconds`, unless something else asks for it sooner."""
        ...


@dataclass(frozen=True, slots=True)
class Timings:
    """Delays in seconds; tests shorten them."""

    resync: float = 600.0
    ref_retry: float = 5.0
    backoff_first: float = 1.0
    backoff_max: float = 30.0
    host_connect: float = 5.0
    host_call: float = 15.0
    host_silence: float = 12.0
    """Without an event or heartbeat (every 10 s) for this long the watch of a host counts as broken. Together with
    one attempt to connect it is shorter than the shortest `leaseDuration`: a host is Unreachable before it is Lost."""
    rotation_grace: float = 600.0
    """How long a replaced token stays valid."""
    lease_duration: float = 15.0
    lease_renew_deadline: float = 10.0
    lease_retry: float = 2.0
    watch_fresh: float = 30.0
    """The watch of the operator's own Lease may be silent for so long."""
    watch_missed: float = 60.0
    """A watch may lag behind a complete list for so long."""
    calls_idle: float = 10.0
    """Between two looks for call records at a host that had none."""
    calls_active: float = 2.0
    """The same at a host that had some."""
    usage_shown: float = 60.0
    """A connection's status says at most this often how much it is used."""
    sessions_shown: float = 60.0
    """A server's status is written at most this often for another number of open sessions alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reconcile asks for when it did not raise."""

    requeue_after: float | None = None


NOTHING = Outcome()


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one operator process, from flags and environment."""

    cluster_name: str = "magic-toolbox"
    namespace: str = "magic-toolbox-system"
    """Where the operator's Lease lives."""
    workers: int = 32
    """Reconciles at once, per kind."""
    workers_per_host: int = 8
    """Of these, so many for objects of one host: one that accepts and never answers holds up no other."""
    metrics_port: int = 8080
    """0: any free port, named in the log."""
    health_port: int = 8081
    database_url: str | None = field(default=None, repr=False)
    """May hold a password: never logged."""
    kubeconfig: Path | None = None
    """None: the pod's service account. Never the machine's current context."""
    identity: str = ""
    """Holder of the Lease: unique per process, unless it is known that an earlier one with it is dead."""
    listen: str = "127.0.0.1"
    """Address of health and metrics."""
    log_json: bool = False
    log_level: str = "info"
    timings: Timings = field(default_factory=Timings)

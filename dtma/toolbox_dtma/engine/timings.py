"""Every duration of the engine, in seconds, in one place: tests inject shorter ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Defaults are the product's (design §3, "Silent numbers")."""

    request: float = 30.0
    """Deadline of one Docker API call."""
    create: float = 120.0
    """Deadline of creating or starting a container; a loaded disk is slow."""
    stop_grace: int = 10
    pull_idle: float = 120.0
    """A pull without any progress for this long has failed."""
    pull_total: float = 1800.0
    restart_first: float = 1.0
    restart_max: float = 300.0
    restart_reset: float = 600.0
    """A container that was up this long starts over with the first delay."""
    retry_first: float = 1.0
    retry_max: float = 30.0
    reconnect_first: float = 0.2
    reconnect_max: float = 5.0
    resync: float = 30.0
    """How often the whole host is compared, in case an event was missed or a firewall rule was removed."""
    command: float = 10.0
    """Deadline of one iptables call."""
    remove: float = 60.0
    """How long `remove` waits before it leaves the removal to the background."""

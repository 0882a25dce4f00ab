"""Failed authentications per source, counted in a bounded table."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable


class FailureThrottle:
    """A token bucket per source address; an IPv6 source is its /64. In memory, per worker."""

    def __init__(
        self, *, monotonic: Callable[[], float], burst: int = 20, per_second: float = 1.0, max_sources: int = 4096
    ):
        self._monotonic = monotonic
        self._burst = burst
        self._rate = per_second
        self._max_sources = max_sources
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def failed(self, address: str) -> float | None:
        """Count one failure. Returns seconds to wait if this source had too many, else None."""
        source = source_of(address)
        now = self._monotonic()
        level, since = self._sources.pop(source, (float(self._burst), now))
        level = min(float(self._burst), level + (now - since) * self._rate)
        refused = level < 1
        self._sources[source] = (level if refused else level - 1, now)
        while len(self._sources) > self._max_sources:
            self._sources.popitem(last=False)
        return (1 - level) / self._rate if refused else None


def source_of(address: str) -> str:
    """The address, for IPv6 its /64: what one party has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        # How a socket on `::` shows IPv4 clients: all of them in one /64.
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address

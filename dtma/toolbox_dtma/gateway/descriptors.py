"""How many connections each worker may hold, as its file descriptors allow."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from toolbox_dtma.gateway.clients import Share
from toolbox_dtma.gateway.settings import ClientBounds

PER_CONNECTION = 2
"""The client's, and the one to the server."""
RESERVED = 400
"""Of a worker, for the rest: its own, and calls that go on after their client hung up."""


class TooFewDescriptors(Exception):
    """No sensible number of connections fits; the message says what to raise."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What each worker gets."""

    share: Share
    descriptors: int
    """What the soft limit has to be."""
    wanted: int
    """What it would have to be for all connections of the settings; more than `descriptors` if it may not."""


def plan(bounds: ClientBounds, workers: int, *, soft: int, hard: int) -> Plan:
    """Share the connections out, fewer if descriptors are short. Raises `TooFewDescriptors`."""
    connections = -(-bounds.connections // workers)
    wanted = connections * PER_CONNECTION + RESERVED
    available = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    connections = min(connections, (available - RESERVED) // PER_CONNECTION)
    if connections < 8:
        raise TooFewDescriptors(
            f"a worker may have {hard} file descriptors and needs {wanted} (ulimit -n, or LimitNOFILE= of the unit)"
        )
    per_source = min(-(-bounds.connections_per_source // workers), connections)
    descriptors = soft if soft == resource.RLIM_INFINITY else max(soft, available)
    return Plan(Share(connections, per_source), descriptors, wanted)


def provide(bounds: ClientBounds, workers: int) -> Plan:
    """`plan` for this process, whose soft limit is raised; workers inherit it. Raises `TooFewDescriptors`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = plan(bounds, workers, soft=soft, hard=hard)
    if found.descriptors != soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (found.descriptors, hard))
    return found

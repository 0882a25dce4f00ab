"""What the servers of a host may take of it together. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from toolbox_dtma.wire import DesiredInstance, InstanceState, Reserved


def reserved(instances: Iterable[DesiredInstance]) -> Reserved:
    """The sum of the limits of those that are to run: of each container, or of as many as sessions are allowed."""
    memory_bytes = cpu_millis = 0
    for desired in instances:
        if desired.state is InstanceState.RUNNING:
            containers = desired.sessions.max_sessions if desired.sessions is not None else 1
            memory_bytes += containers * desired.limits.memory_bytes
            cpu_millis += containers * desired.limits.cpu_millis
    return Reserved(memory_bytes=memory_bytes, cpu_millis=cpu_millis)

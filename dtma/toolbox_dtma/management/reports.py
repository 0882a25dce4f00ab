"""What is told of an instance to its owner and to the gateway. Pure."""

from __future__ import annotations

from toolbox_dtma.approvals import Approvals
from toolbox_dtma.link.broker import Upstream
from toolbox_dtma.link.messages import InstanceRoute
from toolbox_dtma.readiness import Probed, Target
from toolbox_dtma.sessions.records import Bridge
from toolbox_dtma.state.records import InstanceRecord
from toolbox_dtma.wire import DesiredInstance, DesiredSummary, InstanceState


def summary(desired: DesiredInstance) -> DesiredSummary:
    """What was desired, without any value that may be secret."""
    return DesiredSummary(
        generation=desired.generation,
        inputs_hash=desired.inputs_hash,
        restart_token=desired.restart_token,
        image=desired.image,
        port=desired.port,
        path=desired.path,
        state=desired.state,
    )


def without_target(record: InstanceRecord, incarnation: str, socket: str) -> InstanceRoute:
    """The route while nothing is there to relay to. `incarnation` is the last one, `socket` the broker's."""
    desired = record.desired
    stopped = desired.state is InstanceState.STOPPED
    bridged = is_bridged(desired)
    return InstanceRoute(
        id=record.id,
        incarnation=incarnation,
        address=None,
        port=0 if bridged else desired.port or 0,
        path=bridged_path(record.id) if bridged else desired.path or "",
        state="stopped" if stopped else "unavailable",
        bridge=socket if bridged else None,
    )


def listening(
    record: InstanceRecord, target: Target, probed: Probed | None, approvals: Approvals, pins: tuple[str, ...]
) -> InstanceRoute:
    """The route to a container that runs."""
    return InstanceRoute(
        id=record.id,
        incarnation=target.incarnation,
        address=target.address,
        port=target.port,
        path=target.path,
        state="running",
        surface=probed.surface if probed else None,
        approvals=approvals.places(pins),
    )


def bridged(
    record: InstanceRecord, bridge: Bridge, probed: Probed | None, approvals: Approvals, pins: tuple[str, ...]
) -> InstanceRoute:
    """The route to a server whose sessions the broker opens."""
    return InstanceRoute(
        id=record.id,
        incarnation=bridge.incarnation,
        address=None,
        port=0,
        path=bridged_path(record.id),
        state="running",
        surface=probed.surface if probed else None,
        approvals=approvals.places(pins),
        bridge=bridge.path,
    )


def is_bridged(desired: DesiredInstance) -> bool:
    """Whether agents reach it through the session broker, in sessions that this opens."""
    return desired.transport != "streamable-http"


def upstream_of(target: Target | None) -> Upstream | None:
    """Where the session broker finds a server of the SSE transport."""
    return None if target is None else Upstream(address=target.address, port=target.port, path=target.path)


def bridged_path(instance_id: str) -> str:
    """Where the broker serves an instance."""
    return f"/instances/{instance_id}/mcp"

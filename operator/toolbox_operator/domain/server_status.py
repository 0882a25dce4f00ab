"""The status of an MCPServer, from what was observed and what stood in the way."""

from __future__ import annotations

from datetime import datetime

from toolbox_dtma.wire import ContainerReport, InstancePhase, InstanceReason, InstanceReport, InstanceState
from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.mcpserver import (
    ContainerStatus,
    MCPServerPhase,
    MCPServerStatus,
    ServerInfo,
    ToolStatus,
)
from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID
from toolbox_operator.api.sessions import SessionsStatus
from toolbox_operator.domain.conditions import Wanted, no, reconciling, shorten, stalled, stamp, unknown, yes
from toolbox_operator.domain.hold import Hold
from toolbox_operator.domain.inputs import resolved_server
from toolbox_operator.domain.phases import phase_of
from toolbox_operator.domain.policy import Next, meaning
from toolbox_operator.domain.server import ServerObserved, speaks_stdio, told
from toolbox_operator.domain.tools import kept, tools_changed
from toolbox_operator.domain.values import server_url

_LONGEST_DESCRIPTION = 256
_MOST_TOOLS = 256
_RUNS, _RUNS_STDIO = "The container runs as specified.", "Each session gets a container as specified."
_STOPPED, _STOPPED_STDIO = "The container is stopped as specified.", "No session is started, as specified."


def held_status(seen: ServerObserved, hold: Hold, now: datetime) -> MCPServerStatus:
    """The status of a server that goes no further for now."""
    lost = hold.reason == Reason.HOST_LOST
    unknowable = lost or hold.reason == Reason.NAMESPACE_UNKNOWN
    wanted: list[Wanted] = [_not(ConditionType.READY, hold, unknowable)]
    if hold.condition is not ConditionType.ACCEPTED:
        wanted.append(yes(ConditionType.ACCEPTED, Reason.ACCEPTED, "The Toolbox takes this server."))
    if hold.condition is ConditionType.DEPLOYED and not lost:
        wanted.append(yes(ConditionType.RESOLVED_REFS, Reason.RESOLVED, "Every reference leads to a value."))
    wanted.append(_not(hold.condition, hold, unknowable))
    if hold.next is Next.STALLED:
        wanted.append(stalled(hold.reason, hold.message))
    else:
        wanted.append(reconciling(hold.reason, hold.message))
    return _status(seen, wanted, _held_phase(seen, hold), now, accepted=hold.condition is not ConditionType.ACCEPTED)


def deployed_status(seen: ServerObserved, inputs_hash: str | None, now: datetime) -> MCPServerStatus:
    """The status of a server that its host was told about. `inputs_hash`: of the values last resolved."""
    report, generation = seen.report, seen.server.generation
    wanted = [
        yes(ConditionType.ACCEPTED, Reason.ACCEPTED, "The Toolbox takes this server."),
        yes(ConditionType.RESOLVED_REFS, Reason.RESOLVED, "Every reference leads to a value."),
    ]
    if report is None or not told(report, generation, inputs_hash) or not _echoes(report):
        message = "The host has yet to take over the newest spec."
        wanted += [
            no(ConditionType.DEPLOYED, Reason.RECONCILING, message),
            no(ConditionType.READY, Reason.RECONCILING, message),
            reconciling(Reason.RECONCILING, message),
        ]
        phase = MCPServerPhase.PENDING if report is None else _under_way(report)
        return _status(seen, wanted, phase, now, accepted=True)
    wanted += _observed(report, stdio=speaks_stdio(seen.server))
    return _status(seen, wanted, phase_of(report), now, accepted=True, observed=True)


def deleting_status(seen: ServerObserved, reason: Reason, message: str, now: datetime) -> MCPServerStatus:
    """The status of a server on its way out; `message` says what it waits for."""
    wanted = [no(ConditionType.READY, reason, message), reconciling(reason, message)]
    return _status(seen, wanted, MCPServerPhase.DELETING, now, accepted=False)


def _not(type_: ConditionType, hold: Hold, unknowable: bool) -> Wanted:
    return unknown(type_, hold.reason, hold.message) if unknowable else no(type_, hold.reason, hold.message)


def _held_phase(seen: ServerObserved, hold: Hold) -> MCPServerPhase:
    if hold.reason == Reason.HOST_LOST:
        return MCPServerPhase.UNKNOWN
    if hold.next is Next.STALLED:
        return MCPServerPhase.ERROR
    if seen.report is not None and seen.host is not None and seen.host.usable:
        return phase_of(seen.report)
    if hold.reason == Reason.TOOLBOX_NOT_READY and seen.server.status.instance_id is not None:
        # Out of contact for less than the lease: what was last seen is still the best guess.
        return seen.server.status.phase
    return MCPServerPhase.PENDING


def _echoes(report: InstanceReport) -> bool:
    """Whether what the host sees is of what it was last told."""
    desired, observed = report.desired, report.observed
    return observed.generation == desired.generation and observed.inputs_hash == desired.inputs_hash


def _under_way(report: InstanceReport) -> MCPServerPhase:
    phase = phase_of(report)
    return MCPServerPhase.STARTING if phase in (MCPServerPhase.ACTIVE, MCPServerPhase.STOPPED) else phase


def _observed(report: InstanceReport, *, stdio: bool) -> list[Wanted]:
    """Deployed and Ready from an observation of the newest spec."""
    observed = report.observed
    message = sentence(observed.reason, observed.message, stdio=stdio)
    reason = str(observed.reason)
    runs = yes(ConditionType.DEPLOYED, Reason.DEPLOYED, _RUNS_STDIO if stdio else _RUNS)
    match observed.phase:
        case InstancePhase.READY if observed.probe is not None and observed.probe.ok:
            return [
                runs,
                yes(ConditionType.READY, Reason.READY, "The server answered and listed its tools."),
            ]
        case InstancePhase.STOPPED if report.desired.state is InstanceState.STOPPED:
            return [
                yes(ConditionType.DEPLOYED, Reason.STOPPED, _STOPPED_STDIO if stdio else _STOPPED),
                no(ConditionType.READY, Reason.STOPPED, "The server is stopped: set state to Running to start it."),
            ]
        case InstancePhase.PENDING if observed.reason is InstanceReason.STOPPED:
            message = with_saying("The server is about to stop.", observed.message)
            return [
                no(ConditionType.DEPLOYED, Reason.STOPPING, message),
                no(ConditionType.READY, Reason.STOPPING, message),
                reconciling(Reason.STOPPING, message),
            ]
        case InstancePhase.STARTING | InstancePhase.READY:
            return [
                runs,
                no(ConditionType.READY, reason, message),
                reconciling(reason, message),
            ]
        case _:
            running = observed.container is not None and observed.container.state == "running"
            if stdio:
                # A process that was talked with had its container, whatever came of the talk.
                running = observed.reason is InstanceReason.PROBE_FAILED
            return [
                runs if running else no(ConditionType.DEPLOYED, reason, message),
                no(ConditionType.READY, reason, message),
                reconciling(reason, message),
            ]


def sentence(reason: InstanceReason, said: str, *, stdio: bool = False) -> str:
    """What a host's reason means and what to do, then what the host itself said, if anything."""
    ours = meaning(reason, stdio=stdio)
    return with_saying(f"{ours[0].upper()}{ours[1:]}.", said)


def with_saying(ours: str, said: str) -> str:
    """A sentence of ours, then what the host itself said, if anything."""
    said = shorten(said.strip(), 512).rstrip(".")
    return f"{ours} The host says: {said}." if said else ours


def _status(
    seen: ServerObserved,
    wanted: list[Wanted],
    phase: MCPServerPhase,
    now: datetime,
    *,
    accepted: bool,
    observed: bool = False,
) -> MCPServerStatus:
    """`observed`: whether what the host reports is of the newest spec."""
    server, before, report = seen.server, seen.server.status, seen.report
    tools = kept(before)
    if report is not None and _is_probed(report, observed=observed):
        tools = tools_changed(before, _tools(report), report, server.generation)
    wanted = [*wanted, tools] if tools is not None else wanted
    resolved = before.resolved
    if accepted and server.spec is not None and server.problem is None:
        resolved = resolved_server(server, server.spec)
    instance_id = before.instance_id
    if instance_id is None and ANNOTATION_INSTANCE_ID in server.annotations and accepted:
        instance_id = seen.instance_id
    endpoint = before.endpoint
    if instance_id is not None and seen.toolbox is not None and seen.toolbox.spec is not None:
        endpoint = server_url(seen.toolbox.spec.gateway_url, instance_id)
    status = MCPServerStatus(
        phase=phase,
        conditions=stamp(before.conditions, wanted, server.generation, now),
        instance_id=instance_id,
        resolved=resolved,
        container=before.container,
        sessions=before.sessions,
        endpoint=endpoint,
        protocol_version=before.protocol_version,
        server_info=before.server_info,
        tools=before.tools,
        tools_total=before.tools_total,
        tools_truncated=before.tools_truncated,
        tools_hash=before.tools_hash,
        tools_generation=before.tools_generation,
        connections=seen.connections,
        observed_generation=server.generation,
    )
    if report is None:
        contacted = seen.host is not None and seen.host.usable
        return status.model_copy(update={"container": None, "sessions": None}) if contacted else status
    same_image = before.resolved is None or before.resolved.image == report.desired.image
    return _with_report(status, report, same_image=same_image, observed=observed)


def _with_report(
    status: MCPServerStatus, report: InstanceReport, *, same_image: bool, observed: bool
) -> MCPServerStatus:
    """The observed part. What a probe told stays until another one tells something else, or the image changes."""
    sessions = report.observed.sessions
    update: dict[str, object] = {
        "container": _container(report.observed.container),
        "sessions": None if sessions is None else SessionsStatus(open=sessions.open, max=sessions.max),
    }
    probe = report.observed.probe
    if probe is not None and probe.ok:
        update |= {
            "protocol_version": probe.protocol_version,
            "server_info": None
            if probe.server_info is None
            else ServerInfo(name=probe.server_info.name, version=probe.server_info.version),
            "tools": _tools(report),
            "tools_total": probe.tools_total,
            "tools_truncated": probe.tools_truncated,
            "tools_hash": probe.tools_hash,
            "tools_generation": status.observed_generation
            if _is_probed(report, observed=observed)
            else status.tools_generation,
        }
    elif not same_image:
        update |= {
            "protocol_version": None,
            "server_info": None,
            "tools": (),
            "tools_total": 0,
            "tools_truncated": False,
            "tools_hash": None,
            "tools_generation": None,
        }
    return status.model_copy(update=update)


def _is_probed(report: InstanceReport, *, observed: bool) -> bool:
    """Whether the probe is of this spec.

    Only Ready means that: a server that is about to stop still has the probe from before, and whether anybody looked at
    that moment must make no difference.
    """
    return observed and report.observed.phase is InstancePhase.READY


def _tools(report: InstanceReport) -> tuple[ToolStatus, ...]:
    probe = report.observed.probe
    return tuple(
        ToolStatus(name=tool.name, description=shorten(tool.description, _LONGEST_DESCRIPTION), hash=tool.hash)
        for tool in (probe.tools[:_MOST_TOOLS] if probe is not None else ())
    )


def _container(report: ContainerReport | None) -> ContainerStatus | None:
    if report is None:
        return None
    return ContainerStatus(
        name=report.name,
        id=report.id,
        image=report.image,
        image_digest=report.image_digest,
        state=report.state,
        started_at=report.started_at,
        restarts=report.restarts,
        exit_code=report.exit_code,
        reason=report.reason,
        message=None if report.message is None else shorten(report.message),
    )

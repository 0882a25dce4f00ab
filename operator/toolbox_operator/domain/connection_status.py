"""The status of an AgentMCPConnection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.connection import AgentMCPConnectionStatus, ConnectionPhase, ResolvedConnection
from toolbox_operator.api.parse import ConnectionObject
from toolbox_operator.domain.conditions import (
    Wanted,
    find,
    is_true,
    keep,
    no,
    reconciling,
    stalled,
    stamp,
    unknown,
    yes,
)
from toolbox_operator.domain.connection import (
    ConnectionObserved,
    denied,
    secret_of,
    server_missing,
    tool_count,
    undecided,
)
from toolbox_operator.domain.hold import Hold
from toolbox_operator.domain.policy import Next
from toolbox_operator.domain.usage import grown, shown_use
from toolbox_operator.domain.values import target


class Progress(StrEnum):
    """How far what the host is to accept has got."""

    DONE = "Done"
    """Every gateway worker acknowledged exactly this, or the host never knew the connection."""
    OPENING = "Opening"
    REVOKING = "Revoking"
    """Something that was accepted must not be any more, and not every worker is known to have heard of it."""


@dataclass(frozen=True, slots=True)
class Programming:
    """The progress, and what it waits for."""

    progress: Progress
    message: str = ""
    refused: bool = False
    """Whether the host refuses it, rather than has yet to do it."""


_OPEN: Final = "Every gateway worker accepts it."
_CLOSED: Final = {
    Reason.EXPIRED: ConnectionPhase.EXPIRED,
    Reason.INACTIVE: ConnectionPhase.DISCONNECTED,
}
_OF_RECORD: Final = {ConnectionPhase.DELETING: "disconnected"}


def record_status(phase: ConnectionPhase) -> str:
    """What the record calls a phase."""
    return _OF_RECORD.get(phase, phase.value.lower())


def held_status(
    seen: ConnectionObserved,
    hold: Hold,
    now: datetime,
    agent_id: str | None,
    programming: Programming | None = None,
) -> AgentMCPConnectionStatus:
    """The status of a connection that goes no further, and of which nothing has to be closed.

    `programming`: how far the host got all the same; without it the host was told nothing in this pass.
    """
    wanted = _in_force_still(seen, hold) if programming is None else _programmed(programming, _OPEN)
    if hold.reason == Reason.SERVER_NOT_FOUND:
        wanted.append(unknown(ConditionType.ACCEPTED, hold.reason, hold.message))
    elif hold.condition is not ConditionType.ACCEPTED:
        wanted.append(_accepted())
    truth = unknown if hold.reason in (Reason.SERVER_NOT_READY, Reason.NAMESPACE_UNKNOWN) else no
    wanted += [truth(hold.condition, hold.reason, hold.message), truth(ConditionType.READY, hold.reason, hold.message)]
    if hold.next is Next.STALLED:
        wanted.append(stalled(hold.reason, hold.message))
        return _status(seen, wanted, ConnectionPhase.ERROR, now, agent_id)
    wanted.append(reconciling(hold.reason, hold.message))
    return _status(seen, wanted, ConnectionPhase.PENDING, now, agent_id)


def closed_status(
    seen: ConnectionObserved, hold: Hold, programming: Programming, now: datetime, agent_id: str | None
) -> AgentMCPConnectionStatus:
    """The status of a connection that is, or is about to be, closed for a reason."""
    phase = closed_phase(hold)
    if (missing := server_missing(seen)) is not None:
        wanted = [
            unknown(ConditionType.ACCEPTED, missing.reason, missing.message),
            no(ConditionType.RESOLVED_REFS, missing.reason, missing.message),
        ]
    elif denied(hold):
        wanted = [no(ConditionType.ACCEPTED, hold.reason, hold.message)]
    elif (open_question := undecided(seen)) is not None:
        wanted = [unknown(ConditionType.ACCEPTED, open_question.reason, open_question.message)]
    else:
        wanted = [_accepted()]
    wanted += [
        no(ConditionType.READY, hold.reason, hold.message),
        *_programmed(programming, "No gateway worker accepts it."),
    ]
    return _status(seen, wanted, phase, now, agent_id)


def open_status(
    seen: ConnectionObserved, programming: Programming, now: datetime, agent_id: str | None
) -> AgentMCPConnectionStatus:
    """The status of a connection that its host was told to accept."""
    wanted = [
        _accepted(),
        yes(ConditionType.RESOLVED_REFS, Reason.RESOLVED, "The server and the Secret are there."),
        *_programmed(programming, _OPEN),
    ]
    phase = ConnectionPhase.PENDING
    if programming.progress is not Progress.DONE:
        wanted.append(no(ConditionType.READY, pending_reason(programming), programming.message))
    elif seen.host is not None and seen.host.gateway_down:
        message = "No gateway worker runs on the server's host: it cannot be called until one does."
        wanted.append(no(ConditionType.READY, Reason.GATEWAY_UNAVAILABLE, message))
    elif not server_ready(seen):
        wanted.append(unknown(ConditionType.READY, Reason.SERVER_NOT_READY, _server_message(seen)))
    else:
        phase = ConnectionPhase.CONNECTED
        wanted.append(yes(ConditionType.READY, Reason.CONNECTED, "The agent can call the server."))
    return _status(seen, wanted, phase, now, agent_id)


def deleting_status(
    seen: ConnectionObserved, reason: Reason, message: str, now: datetime, agent_id: str | None
) -> AgentMCPConnectionStatus:
    """The status of a connection on its way out."""
    wanted = [
        no(ConditionType.READY, reason, message),
        no(ConditionType.PROGRAMMED, Reason.REVOCATION_PENDING, message),
        reconciling(reason, message),
    ]
    return _status(seen, wanted, ConnectionPhase.DELETING, now, agent_id)


def closed_phase(hold: Hold) -> ConnectionPhase:
    """The phase of a connection closed for this reason."""
    return ConnectionPhase.DENIED if denied(hold) else _CLOSED[Reason(hold.reason)]


def was_programmed(connection: ConnectionObject) -> bool:
    """Whether status says that the present generation is in force."""
    condition = find(connection.status.conditions, ConditionType.PROGRAMMED)
    return (
        condition is not None and condition.status == "True" and condition.observed_generation == connection.generation
    )


def believed_in_force(seen: ConnectionObserved) -> bool:
    """Whether status, without a word of the host, says that what it is to accept is in force.

    A server whose newest spec is not deployed may have been narrowed meanwhile: then nothing is believed.
    """
    server = seen.server
    if server is None or server.status.observed_generation != server.generation:
        return False
    return is_true(server.status.conditions, ConditionType.DEPLOYED) and was_programmed(seen.connection)


def server_ready(seen: ConnectionObserved) -> bool:
    """Whether the server answers."""
    return seen.server is not None and is_true(seen.server.status.conditions, ConditionType.READY)


def _server_message(seen: ConnectionObserved) -> str:
    if seen.server is None:
        return "The server is not there."
    condition = find(seen.server.status.conditions, ConditionType.READY)
    because = condition.message if condition is not None else "It has no status yet."
    return f"The MCPServer {seen.server.key} is not ready. {because}"


def _accepted() -> Wanted:
    return yes(ConditionType.ACCEPTED, Reason.ACCEPTED, "The server accepts connections of this namespace.")


def pending_reason(programming: Programming) -> Reason:
    """Why it is not in force. That something may still be accepted comes first."""
    if programming.progress is Progress.REVOKING:
        return Reason.REVOCATION_PENDING
    return Reason.HOST_REJECTED if programming.refused else Reason.ACK_PENDING


def _programmed(programming: Programming, done: str) -> list[Wanted]:
    if programming.progress is Progress.DONE:
        return [yes(ConditionType.PROGRAMMED, Reason.PROGRAMMED, done)]
    reason = pending_reason(programming)
    return [
        no(ConditionType.PROGRAMMED, reason, programming.message),
        reconciling(reason, programming.message),
    ]


def _in_force_still(seen: ConnectionObserved, hold: Hold) -> list[Wanted]:
    """`Programmed` of a connection whose host was told nothing: what it held before, it holds on to."""
    before = find(seen.connection.status.conditions, ConditionType.PROGRAMMED)
    if before is None or hold.reason in (Reason.SERVER_NOT_FOUND, Reason.SERVER_NOT_READY):
        # With the server its grants leave the host.
        return []
    if before.status == "True" and not was_programmed(seen.connection):
        message = "The newest spec is not in force; what the gateway accepted before, it still accepts."
        return [no(ConditionType.PROGRAMMED, hold.reason, message)]
    return [keep(before)]


def _status(
    seen: ConnectionObserved, wanted: list[Wanted], phase: ConnectionPhase, now: datetime, agent_id: str | None
) -> AgentMCPConnectionStatus:
    connection, spec = seen.connection, seen.connection.spec
    before = connection.status
    resolved, tools = before.resolved, before.tools
    if spec is not None and connection.problem is None and seen.server is not None:
        resolved = ResolvedConnection(
            agent=spec.agent.name,
            server=str(target(spec.server_ref, connection.key.namespace)),
            secret_name=secret_of(connection, spec),
        )
        tools = tool_count(seen, spec)
    use = grown(shown_use(before), seen.use)
    return AgentMCPConnectionStatus(
        phase=phase,
        conditions=stamp(before.conditions, wanted, connection.generation, now),
        resolved=resolved,
        connection_id=connection.uid,
        agent_id=agent_id or before.agent_id,
        endpoint=seen.url or before.endpoint,
        secret_name=resolved.secret_name if resolved is not None else before.secret_name,
        tools=tools,
        calls=use.calls if use is not None else before.calls,
        last_used_time=use.last if use is not None else before.last_used_time,
        observed_generation=connection.generation,
    )

"""Decisions about an AgentMCPConnection: may it be open, and what exactly is the host to accept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from toolbox_dtma.wire import Credential, Expose, Grant, GrantReport, NameFilter, allowed_by_all
from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.connection import AgentMCPConnectionSpec
from toolbox_operator.api.parse import ConnectionObject, ServerObject, ToolboxObject
from toolbox_operator.api.rules import secret_name
from toolbox_operator.api.selector import Labels
from toolbox_operator.domain.hold import Hold, stalled_by, waits_for
from toolbox_operator.domain.host import HostView
from toolbox_operator.domain.inputs import wire_expose
from toolbox_operator.domain.limits import wire_limits
from toolbox_operator.domain.server import permitted
from toolbox_operator.domain.sharing import accepted, labels_hold, remedy
from toolbox_operator.domain.usage import Use
from toolbox_operator.domain.values import server_url, target

_NONE: Final = NameFilter(allow=())
_NOTHING: Final = Expose(tools=_NONE, resources=_NONE, prompts=_NONE)


@dataclass(frozen=True, slots=True)
class ConnectionObserved:
    """Everything a decision about one connection is made on."""

    connection: ConnectionObject
    server: ServerObject | None
    toolbox: ToolboxObject | None
    host: HostView | None
    use: Use | None = None
    """What status may say of its use now; None: what it says already."""
    labels: Labels | None = None
    """Of the connection's namespace; None: not known."""
    server_labels: Labels | None = None
    """Of the server's namespace; None: not known, or there is no server."""

    @property
    def held(self) -> GrantReport | None:
        """The grant that the host was last known to hold for this connection."""
        return None if self.host is None else self.host.grants.get(self.connection.uid)

    @property
    def url(self) -> str | None:
        """Where the agent calls; None before the server has its id."""
        if self.server is None or self.toolbox is None or self.toolbox.spec is None:
            return None
        instance = self.server.status.instance_id
        return None if instance is None else server_url(self.toolbox.spec.gateway_url, instance)


def secret_of(connection: ConnectionObject, spec: AgentMCPConnectionSpec) -> str:
    """The name of the connection's Secret."""
    return secret_name(connection.key.name, spec.secret_name)


def _spec_is_valid(seen: ConnectionObserved) -> Hold | None:
    problem = seen.connection.problem
    return None if problem is None else stalled_by(problem.reason, problem.message)


def server_missing(seen: ConnectionObserved) -> Hold | None:
    """The hold on a connection whose server does not exist."""
    if seen.server is not None or seen.connection.spec is None:
        return None
    named = target(seen.connection.spec.server_ref, seen.connection.key.namespace)
    return waits_for(
        Reason.SERVER_NOT_FOUND,
        f"The MCPServer {named} does not exist: create it, or create a connection that names another.",
        ConditionType.RESOLVED_REFS,
        quiet=True,
    )


def _labels_are_known(seen: ConnectionObserved) -> Hold | None:
    server = seen.server
    if server is None or server.spec is None:
        return None
    return labels_hold(server.spec.sharing.namespaces, seen.connection.key.namespace, seen.labels)


def _server_shares(seen: ConnectionObserved) -> Hold | None:
    server = seen.server
    if server is None or server.spec is None:
        return None
    choice, namespace = server.spec.sharing.namespaces, seen.connection.key.namespace
    if choice.permits(server.key.namespace, namespace, seen.labels):
        return None
    return waits_for(
        Reason.NOT_PERMITTED,
        f"The MCPServer {server.key} accepts connections of {accepted(choice)}: its owner may"
        f" {remedy(choice, 'sharing.namespaces', namespace)}; or create the connection in a namespace that it accepts.",
        quiet=True,
    )


def _labels_of_the_server_are_known(seen: ConnectionObserved) -> Hold | None:
    server, toolbox = seen.server, seen.toolbox
    if server is None or toolbox is None or toolbox.spec is None:
        return None
    return labels_hold(toolbox.spec.allowed_servers.namespaces, server.key.namespace, seen.server_labels)


def _toolbox_takes_the_server(seen: ConnectionObserved) -> Hold | None:
    server, toolbox = seen.server, seen.toolbox
    if server is None or toolbox is None or toolbox.spec is None or permitted(server, toolbox, seen.server_labels):
        return None
    return waits_for(
        Reason.NOT_PERMITTED,
        f"The Toolbox {toolbox.key} no longer takes the MCPServer {server.key}: see its allowedServers.",
        quiet=True,
    )


def undecided(seen: ConnectionObserved) -> Hold | None:
    """The hold on a connection that labels decide on which are not known."""
    return _labels_are_known(seen) or _labels_of_the_server_are_known(seen)


CHECKS: Final[tuple[Callable[[ConnectionObserved], Hold | None], ...]] = (
    _spec_is_valid,
    server_missing,
    _labels_are_known,  # what is not known is no reason to close anything
    _server_shares,  # denied unless the server's owner said otherwise
    _labels_of_the_server_are_known,
    _toolbox_takes_the_server,  # narrowing allowedServers closes what is open
)
"""What must hold before a connection is opened, in this order."""


def first_hold(seen: ConnectionObserved) -> Hold | None:
    """The first check that fails."""
    return next((hold for check in CHECKS if (hold := check(seen)) is not None), None)


def denied(hold: Hold) -> bool:
    """Whether a hold means that what was open must be closed."""
    return hold.reason in (Reason.NOT_PERMITTED, Reason.SECRET_CONFLICT)


def closing(seen: ConnectionObserved, spec: AgentMCPConnectionSpec, hold: Hold | None, now: datetime) -> Hold | None:
    """Why whatever is open has to be closed. What the spec itself wants closed needs neither server nor labels."""
    if hold is not None and denied(hold):
        return hold
    if hold is None or hold.reason == Reason.NAMESPACE_UNKNOWN or server_missing(seen) == hold:
        return closed_by_spec(spec, now)
    return None


def closed_by_spec(spec: AgentMCPConnectionSpec, now: datetime) -> Hold | None:
    """Why the connection's own spec wants it closed."""
    if spec.expires_at is not None and spec.expires_at <= now:
        return waits_for(
            Reason.EXPIRED,
            f"It expired at {spec.expires_at.isoformat()}: set a later expiresAt to open it again.",
            ConditionType.READY,
            quiet=True,
        )
    if not spec.active:
        return waits_for(
            Reason.INACTIVE, "It is switched off: set active to true to open it.", ConditionType.READY, quiet=True
        )
    return None


def placed_hold(seen: ConnectionObserved) -> Hold | None:
    """Why there is nothing to connect to yet."""
    server = seen.server
    if seen.url is None or server is None:
        name = "The server" if server is None else f"The MCPServer {server.key}"
        message = f"{name} is not on a host yet."
        return waits_for(Reason.SERVER_NOT_READY, message, ConditionType.RESOLVED_REFS, quiet=True)
    host = seen.host
    if host is not None and host.usable and server.status.instance_id not in host.instances:
        message = f"The MCPServer {server.key} is not on its host yet."
        return waits_for(Reason.SERVER_NOT_READY, message, ConditionType.RESOLVED_REFS, quiet=True)
    return None


def grant(seen: ConnectionObserved, spec: AgentMCPConnectionSpec, credentials: tuple[Credential, ...]) -> Grant | None:
    """What the host is to hold; None without a server that has its id. Without credentials nothing is accepted.

    Closing is a grant that accepts nothing, not a deletion: a deleted grant can never come back.
    """
    connection, server = seen.connection, seen.server
    if server is None or server.status.instance_id is None:
        return None
    server_expose = server.spec.expose if server.spec is not None else None
    return Grant(
        namespace=connection.key.namespace,
        name=connection.key.name,
        generation=connection.generation,
        instance=server.status.instance_id,
        agent=spec.agent.name,
        credentials=credentials,
        # A server whose spec cannot be read exposes nothing.
        server_expose=wire_expose(server_expose) if server_expose is not None else _NOTHING,
        expose=wire_expose(spec.expose),
        expires_at=spec.expires_at,
        limits=wire_limits(spec.limits),
    )


def tool_count(seen: ConnectionObserved, spec: AgentMCPConnectionSpec) -> int | None:
    """How many of the server's known tools pass both filters and are approved; None before the server listed any."""
    server = seen.server
    if server is None or server.spec is None or server.status.protocol_version is None:
        return None
    filters: tuple[NameFilter, ...] = (wire_expose(server.spec.expose).tools, wire_expose(spec.expose).tools)
    report = None if seen.host is None else seen.host.instances.get(server.status.instance_id or "")
    approval = None if report is None else report.observed.approval
    hidden = frozenset(approval.hidden) if approval is not None else frozenset[str]()
    return sum(allowed_by_all(filters, tool.name) and tool.name not in hidden for tool in server.status.tools)

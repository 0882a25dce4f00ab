"""Decisions about an MCPServer: may it go on, what must be told to the host, what must be removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from toolbox_dtma.wire import InstanceReport
from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.meta import ANNOTATION_ABANDON, ANNOTATION_INSTANCE_ID, Key
from toolbox_operator.api.parse import ServerObject, ToolboxObject
from toolbox_operator.api.selector import Labels
from toolbox_operator.domain.conditions import is_true
from toolbox_operator.domain.hold import Hold, stalled_by, waits_for
from toolbox_operator.domain.host import HostState, HostView
from toolbox_operator.domain.inputs import toolbox_key
from toolbox_operator.domain.sharing import accepted, labels_hold, remedy
from toolbox_operator.domain.values import is_uuid, target


@dataclass(frozen=True, slots=True)
class ServerObserved:
    """Everything a decision about one server is made on."""

    server: ServerObject
    toolbox: ToolboxObject | None
    host: HostView | None
    senior: Key | None = None
    """An older live MCPServer with the same instance id."""
    connections: int = 0
    labels: Labels | None = None
    """Of the server's namespace; None: not known."""

    @property
    def instance_id(self) -> str:
        """The id the server has, or will get."""
        return instance_id_of(self.server)

    @property
    def report(self) -> InstanceReport | None:
        """What the host last said about this server, and not about a namesake or an earlier incarnation."""
        if self.host is None:
            return None
        report = self.host.instances.get(self.instance_id)
        return report if report is not None and report.uid == self.server.uid else None


def instance_id_of(server: ServerObject) -> str:
    """Annotation, else what status recorded, else the UID; of one being deleted, what it ran under comes first."""
    if server.deleting and server.status.instance_id is not None:
        return server.status.instance_id
    return server.annotations.get(ANNOTATION_INSTANCE_ID) or server.status.instance_id or server.uid


def toolbox_of(server: ServerObject) -> Key | None:
    """The Toolbox a server is on: the one it was accepted on, else the one it names."""
    if server.status.resolved is not None:
        return toolbox_key(server.status.resolved)
    return None if server.spec is None else target(server.spec.toolbox_ref, server.key.namespace)


def transport_of(server: ServerObject) -> str:
    """How a server speaks MCP: as it was accepted, else as its spec says."""
    if server.status.resolved is not None:
        return server.status.resolved.transport
    return server.spec.transport if server.spec is not None else "streamable-http"


def speaks_stdio(server: ServerObject) -> bool:
    """Whether each session of the server has a container, and the server itself none."""
    return transport_of(server) == "stdio"


def permitted(server: ServerObject, toolbox: ToolboxObject, labels: Labels | None) -> bool:
    """Whether the Toolbox takes servers of this namespace, which has these labels."""
    if toolbox.spec is None:
        return False
    return toolbox.spec.allowed_servers.namespaces.permits(toolbox.key.namespace, server.key.namespace, labels)


def _spec_is_valid(seen: ServerObserved) -> Hold | None:
    problem = seen.server.problem
    return None if problem is None else stalled_by(problem.reason, problem.message)


def _instance_id_is_a_uuid(seen: ServerObserved) -> Hold | None:
    if is_uuid(seen.instance_id):
        return None
    return stalled_by(
        Reason.INSTANCE_ID_INVALID,
        f"The annotation {ANNOTATION_INSTANCE_ID} must be a UUID in lower case: correct it, or remove it to get one.",
    )


def _instance_id_is_kept(seen: ServerObserved) -> Hold | None:
    known = seen.server.status.instance_id
    if known is None or known == seen.instance_id:
        return None
    return stalled_by(
        Reason.INSTANCE_ID_INVALID,
        f"The annotation {ANNOTATION_INSTANCE_ID} cannot change while the server exists: set it back to {known}.",
    )


def _instance_id_is_its_own(seen: ServerObserved) -> Hold | None:
    if seen.senior is None:
        return None
    return stalled_by(
        Reason.INSTANCE_ID_IN_USE,
        f"The MCPServer {seen.senior} has the same instance id: give this one another {ANNOTATION_INSTANCE_ID}.",
    )


def _toolbox_exists(seen: ServerObserved) -> Hold | None:
    if seen.toolbox is not None:
        return None
    named = toolbox_of(seen.server)
    return waits_for(
        Reason.TOOLBOX_NOT_FOUND,
        f"The Toolbox {named} does not exist: create it, or create a server that names another.",
    )


def _labels_are_known(seen: ServerObserved) -> Hold | None:
    toolbox = seen.toolbox
    if toolbox is None or toolbox.spec is None:
        return None
    return labels_hold(toolbox.spec.allowed_servers.namespaces, seen.server.key.namespace, seen.labels)


def _toolbox_permits(seen: ServerObserved) -> Hold | None:
    toolbox = seen.toolbox
    if toolbox is None or toolbox.spec is None or permitted(seen.server, toolbox, seen.labels):
        return None
    choice = toolbox.spec.allowed_servers.namespaces
    cure = remedy(choice, "allowedServers.namespaces", seen.server.key.namespace)
    message = (
        f"The Toolbox {toolbox.key} takes servers of {accepted(choice)}: {cure}, or create the server in a namespace"
        " that it takes."
    )
    status = seen.server.status
    if seen.report is not None or status.container is not None or status.sessions is not None:
        message += " What already runs is left running; its connections are closed."
    return waits_for(Reason.NOT_PERMITTED, message, quiet=True)


def _toolbox_stays(seen: ServerObserved) -> Hold | None:
    toolbox = seen.toolbox
    if toolbox is None or not toolbox.deleting:
        return None
    return waits_for(
        Reason.TOOLBOX_NOT_READY,
        f"The Toolbox {toolbox.key} is being deleted: delete this server too, or create one on another Toolbox.",
    )


CHECKS: Final[tuple[Callable[[ServerObserved], Hold | None], ...]] = (
    _spec_is_valid,
    _instance_id_is_a_uuid,
    _instance_id_is_kept,  # the container runs under the old one
    _instance_id_is_its_own,  # two objects must not fight over one container
    _toolbox_exists,
    _labels_are_known,  # what is not known is no reason to close anything
    _toolbox_permits,
    _toolbox_stays,
)
"""What must hold before a server is put on its host, in this order."""


def first_hold(seen: ServerObserved) -> Hold | None:
    """The first check that fails."""
    return next((hold for check in CHECKS if (hold := check(seen)) is not None), None)


def contact_hold(seen: ServerObserved) -> Hold | None:
    """Why the host cannot be told anything now. The Toolbox's reconciler requeues its servers when that changes."""
    host, toolbox = seen.host, toolbox_of(seen.server)
    if host is not None and host.usable:
        return None
    if host is not None and host.state is HostState.LOST:
        because = host.failure.message if host.failure else "It does not answer."
        return waits_for(
            Reason.HOST_LOST,
            f"The host of the Toolbox {toolbox} is lost: what runs there is not known. {because}",
            ConditionType.DEPLOYED,
            quiet=True,
        )
    because = host.failure.message if host is not None and host.failure is not None else "There is no contact yet."
    return waits_for(
        Reason.TOOLBOX_NOT_READY,
        f"The Toolbox {toolbox} is not ready. {because}",
        ConditionType.DEPLOYED,
        quiet=True,
    )


def nothing_changes(seen: ServerObserved) -> bool:
    """Whether status stands as it is: contact is missing for less than the lease, and nothing new is wanted."""
    host, status = seen.host, seen.server.status
    absent = host is None or host.state in (HostState.NEW, HostState.IDENTIFIED, HostState.UNREACHABLE)
    settled = status.observed_generation == seen.server.generation and status.resolved is not None
    return absent and settled and seen.server.deletion_timestamp is None


def told(report: InstanceReport | None, generation: int, inputs_hash: str | None) -> bool:
    """Whether the host was last told exactly this generation with exactly these inputs."""
    return (
        report is not None
        and inputs_hash is not None
        and report.desired.generation == generation
        and report.desired.inputs_hash == inputs_hash
    )


class Removal(StrEnum):
    """How a server that is being deleted leaves its host."""

    NOTHING = "Nothing"
    """It was never put there, or what is there under its id is another object's."""
    REMOVE = "Remove"
    ABANDON = "Abandon"
    """Left behind on purpose: recorded, warned about, and swept when the host returns."""
    WAIT = "Wait"
    """Contact with the host is being made; nothing stands in the way yet."""
    BLOCKED = "Blocked"


def abandoned(annotations: Mapping[str, str]) -> bool:
    """Whether somebody broke the glass."""
    return annotations.get(ANNOTATION_ABANDON) == "true"


def removal(seen: ServerObserved, *, toolbox_missing: bool) -> Removal:
    """What to do about the container of a server that is being deleted and holds our finalizer.

    `toolbox_missing`: a live read said that its Toolbox does not exist.
    """
    if seen.senior is not None and seen.report is None:
        return Removal.NOTHING
    if seen.host is not None and seen.host.usable:
        return Removal.REMOVE
    if toolbox_missing or abandoned(seen.server.annotations):
        return Removal.ABANDON
    if seen.toolbox is not None and seen.toolbox.deleting and _given_up(seen.host):
        return Removal.ABANDON
    return Removal.WAIT if contacting(seen.toolbox, seen.host) else Removal.BLOCKED


def contacting(toolbox: ToolboxObject | None, host: HostView | None) -> bool:
    """Whether contact is still being made, as after every start. A stalled Toolbox makes none.

    Who waits for it is requeued when it is there, and when it fails.
    """
    if toolbox is None or is_true(toolbox.status.conditions, ConditionType.STALLED):
        return False
    return host is None or host.state in (HostState.NEW, HostState.IDENTIFIED)


def _given_up(host: HostView | None) -> bool:
    """Whether contact was tried and failed, as opposed to not tried yet in this process."""
    return host is not None and host.state in (HostState.UNREACHABLE, HostState.LOST)

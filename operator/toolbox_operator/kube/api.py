"""The seam to the Kubernetes API: what reconcilers may do, and how it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from toolbox_operator.api.meta import GROUP, VERSION, Body, Key, Kind


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object as the API names it. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version


TOOLBOXES = Resource(GROUP, VERSION, "toolboxes", Kind.TOOLBOX)
MCP_SERVERS = Resource(GROUP, VERSION, "mcpservers", Kind.MCP_SERVER)
CONNECTIONS = Resource(GROUP, VERSION, "agentmcpconnections", Kind.CONNECTION)
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

RESOURCE_OF: dict[Kind, Resource] = {
    Kind.TOOLBOX: TOOLBOXES,
    Kind.MCP_SERVER: MCP_SERVERS,
    Kind.CONNECTION: CONNECTIONS,
}


class KubeError(Exception):
    """The API server refused or failed; `status` is the HTTP status, 0 without an answer."""

    def __init__(self, status: int, message: str, *, retry_after: float | None = None):
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Conflict(KubeError):
    """409 on a write: the object changed meanwhile. Read again, decide again."""


class AlreadyExists(KubeError):
    """409 on a create: an object of this name is there."""


class Missing(KubeError):
    """404 on a write."""


class Refused(KubeError):
    """403 or 422: the same request will not succeed by repetition."""


class Kube(Protocol):
    """Kubernetes as the operator uses it. Every call has a deadline; every write is fenced by leadership.

    Writes carry the resourceVersion of the body they were decided on and raise `Conflict` when it moved on.
    All raise `KubeError` on anything else, and `Fenced` when this process no longer leads.
    """

    async def get(self, resource: Resource, key: Key) -> Body | None:
        """The live object, or None when the API server says it is absent."""
        ...

    async def list(self, resource: Resource, *, label_selector: str = "") -> tuple[Sequence[Body], str]:
        """All objects of all namespaces in scope, complete, and the list's resourceVersion."""
        ...

    async def create(self, resource: Resource, body: Body) -> Body:
        """Create. Raises `AlreadyExists`."""
        ...

    async def merge_patch(self, resource: Resource, key: Key, resource_version: str, patch: dict[str, Any]) -> Body:
        """RFC 7396 patch of the main resource (annotations, finalizers, data), guarded by resourceVersion."""
        ...

    async def replace_status(self, resource: Resource, body: Body, status: dict[str, Any]) -> Body:
        """Write the whole status subresource, guarded by `body`'s resourceVersion."""
        ...

    async def delete(self, resource: Resource, key: Key, *, uid: str, resource_version: str | None = None) -> None:
        """Delete exactly this incarnation. Absent is success."""
        ...

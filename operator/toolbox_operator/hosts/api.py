"""The seam to one host's DTMA: what reconcilers may do, and how it fails.

`Legacy` and other drivers would implement the same protocol. Calls carry owner and epoch, have deadlines,
and are idempotent: repeating one after a lost answer changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from toolbox_dtma.wire import (
    CallBatch,
    DeletedInstance,
    DesiredInstance,
    GatewayFacts,
    Grant,
    GrantProgrammed,
    GrantReport,
    HostConfig,
    HostFacts,
    InstanceList,
    InstanceReport,
    OwnerClaimed,
    ProblemCode,
    VolumePolicy,
)


class HostError(Exception):
    """Base of everything a host call may raise, except `Fenced`."""


class HostUnreachable(HostError):
    """No usable answer: refused, timed out, reset, circuit open, truncated or unparsable. Meaning: unknown."""


class HostUntrusted(HostError):
    """TLS failed: the certificate is not from the configured CA, expired, or for another name."""


class HostUnauthorized(HostError):
    """The host does not accept our token (401, 403)."""


class HostProblem(HostError):
    """The host answered with a problem; `code` says which."""

    def __init__(self, code: ProblemCode, detail: str, *, current: int | None = None):
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.current = current


class Host(Protocol):
    """One host, one owner. Raises the errors above, and `Fenced` when this process no longer leads."""

    async def claim(self, epoch: int) -> OwnerClaimed: ...
    async def facts(self) -> HostFacts: ...
    async def configure(self, config: HostConfig) -> None: ...
    async def put_instance(self, instance_id: str, desired: DesiredInstance) -> InstanceReport: ...
    async def get_instance(self, instance_id: str) -> InstanceReport | None: ...
    async def delete_instance(
        self, instance_id: str, *, uid: str, namespace: str, name: str, volume_policy: VolumePolicy | None = None
    ) -> None:
        """Returns once container, network and grants are gone, and volumes as said. Absent is success.

        Without `volume_policy` the one holds that the host was told with the instance.
        """
        ...

    async def put_grant(self, uid: str, grant: Grant) -> GrantReport:
        """Returns once every gateway worker acknowledged; `HostProblem(ACK_PENDING)` when persisted but not yet."""
        ...

    async def list_grants(self) -> tuple[GrantReport, ...]: ...
    async def delete_grant(self, uid: str, *, namespace: str, name: str) -> None:
        """As `put_grant`: returns once every worker acknowledged. Absent is success."""
        ...


@dataclass(frozen=True, slots=True)
class HostSettings:
    """How to reach one host."""

    endpoint: str
    token: str = field(repr=False)
    gateway_url: str
    ca_pem: str | None = None
    """Certificates to trust, PEM; None means the system's roots."""


@dataclass(frozen=True, slots=True)
class HostEvent:
    """One message of a host's event stream; without `data` it is a heartbeat."""

    data: InstanceReport | DeletedInstance | GrantProgrammed | GatewayFacts | None = None
    cursor: str | None = None
    """Where to resume after this event."""


@dataclass(frozen=True, slots=True)
class PulledCalls:
    """A batch of call records as it came."""

    batch: CallBatch
    unreadable: int = 0
    """Records of it that could not be read, and are not among its items."""


class WatchableHost(Host, Protocol):
    """A host that can also be listed and watched: what the registry keeps one of per Toolbox."""

    async def list_instances(self) -> InstanceList: ...
    def watch(self, cursor: str) -> AsyncGenerator[HostEvent]:
        """Events after `cursor`; ends or raises `HostError` when the stream breaks or falls silent."""
        ...

    async def calls(self, after: str | None) -> PulledCalls:
        """The records behind a batch's cursor, which acknowledges that batch; None: everything the host holds.

        `HostProblem(NOT_FOUND)`: the host's agent is too old to keep any.
        """
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...

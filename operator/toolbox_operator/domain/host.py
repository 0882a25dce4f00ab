"""What is known of one host at one moment: the immutable snapshot that decisions are made on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from toolbox_dtma.wire import GrantReport, HostFacts, InstanceReport
from toolbox_operator.api.conditions import Reason


class HostState(StrEnum):
    """Where contact with a host stands."""

    NEW = "New"
    """No contact in this process yet, and not for long enough to say more."""
    IDENTIFIED = "Identified"
    """It answered and said who it is; nothing is asked of it until its Toolbox admits that identity."""
    REACHABLE = "Reachable"
    """Configured, listed and watched."""
    UNREACHABLE = "Unreachable"
    """Contact lost for less than the lease: nothing but the Toolbox's own status changes."""
    LOST = "Lost"
    """No contact for longer than the lease: what runs there is unknown."""


@dataclass(frozen=True, slots=True)
class HostFailure:
    """Why the last contact failed, as the reason and sentence of a condition."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as last seen. `instances` and `grants` outlive a lost contact: they are then the last known truth."""

    state: HostState
    synced: bool = False
    """Whether a complete list was received in this process."""
    host_id: str | None = None
    facts: HostFacts | None = None
    boot_id: int = 0
    instances: Mapping[str, InstanceReport] = field(default_factory=dict[str, InstanceReport])
    grants: Mapping[str, GrantReport] = field(default_factory=dict[str, GrantReport])
    failure: HostFailure | None = None
    contact: int = 0
    """Which contact of this process it is, counted over all hosts: calls may have failed between two. 0: none yet."""
    ahead: float = 0.0
    """Seconds by which the host's clock was ahead of ours when it was found; negative: behind."""
    lost_in: float | None = None
    """Seconds until `Lost`, while contact is missing and the lease runs."""

    @property
    def gateway_down(self) -> bool:
        """Whether the host says that agents reach nothing on it."""
        return self.usable and self.facts is not None and not self.facts.gateway.available

    @property
    def usable(self) -> bool:
        """Whether calls may be made."""
        return self.state is HostState.REACHABLE

    def holds(self, instance_id: str, uid: str) -> bool:
        """Whether the host has an instance under this id for this incarnation of its object."""
        report = self.instances.get(instance_id)
        return report is not None and report.uid == uid

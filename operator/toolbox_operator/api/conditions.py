"""Condition types and reasons: the stable vocabulary of `status.conditions` (kstatus conventions)."""

# ruff: noqa: S105  (reasons that name Secrets look like passwords to the linter; none is one)

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field
from pydantic.config import JsonDict

from toolbox_operator.api.meta import StatusModel, clip

LIST_MAP_BY_TYPE: JsonDict = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


class ConditionType(StrEnum):
    """Condition types. `ToolsChanged`, `Reconciling` and `Stalled` are present only while true."""

    READY = "Ready"
    REACHABLE = "Reachable"
    ACCEPTED = "Accepted"
    RESOLVED_REFS = "ResolvedRefs"
    DEPLOYED = "Deployed"
    PROGRAMMED = "Programmed"
    TOOLS_CHANGED = "ToolsChanged"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Reason(StrEnum):
    """Reasons the operator itself gives; a host's `InstanceReason` is passed on under its own name."""

    # success
    READY = "Ready"
    ACCEPTED = "Accepted"
    RESOLVED = "Resolved"
    DEPLOYED = "Deployed"
    PROGRAMMED = "Programmed"
    REACHABLE = "Reachable"
    CLOCK_SKEWED = "ClockSkewed"
    CONNECTED = "Connected"
    TOOLS_APPROVED = "ToolsApproved"
    # on the way
    PENDING = "Pending"
    RECONCILING = "Reconciling"
    DELETING = "Deleting"
    STOPPED = "Stopped"
    STOPPING = "Stopping"
    INACTIVE = "Inactive"
    EXPIRED = "Expired"
    SERVER_NOT_READY = "ServerNotReady"
    REVOCATION_PENDING = "RevocationPending"
    ACK_PENDING = "AckPending"
    ROTATING = "Rotating"
    IN_USE = "InUse"
    TOOLS_CHANGED = "ToolsChanged"
    TOOLS_NOT_APPROVED = "ToolsNotApproved"
    # waiting for something outside this object
    TOOLBOX_NOT_FOUND = "ToolboxNotFound"
    TOOLBOX_NOT_READY = "ToolboxNotReady"
    SERVER_NOT_FOUND = "ServerNotFound"
    SECRET_NOT_FOUND = "SecretNotFound"
    SECRET_KEY_NOT_FOUND = "SecretKeyNotFound"
    SECRET_INVALID = "SecretInvalid"
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    CONFIG_MAP_KEY_NOT_FOUND = "ConfigMapKeyNotFound"
    NOT_PERMITTED = "NotPermitted"
    NAMESPACE_UNKNOWN = "NamespaceUnknown"
    SECRET_CONFLICT = "SecretConflict"
    HOST_UNREACHABLE = "HostUnreachable"
    HOST_UNAUTHORIZED = "HostUnauthorized"
    HOST_TLS_FAILED = "HostTLSFailed"
    HOST_REJECTED = "HostRejected"
    HOST_LOST = "HostLost"
    DISK_FULL = "DiskFull"
    GATEWAY_UNAVAILABLE = "GatewayUnavailable"
    KUBERNETES_REFUSED = "KubernetesRefused"
    INTERNAL_ERROR = "InternalError"
    # an edit of this object is the only cure (Stalled)
    SPEC_INVALID = "SpecInvalid"
    IMMUTABLE_FIELD = "ImmutableField"
    INSTANCE_ID_IN_USE = "InstanceIdInUse"
    INSTANCE_ID_INVALID = "InstanceIdInvalid"
    HOST_CLAIMED = "HostClaimed"
    HOST_CHANGED = "HostChanged"
    CLEANUP_BLOCKED = "CleanupBlocked"
    ABANDONED = "Abandoned"


class Condition(StatusModel):
    """One aspect of the object's state, as `metav1.Condition`."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Which aspect, like Ready or Stalled."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, as one stable CamelCase word for programs."""
    message: Annotated[str, clip(32768), Field(max_length=32768)] = ""
    """Why, for people, and what to do about it."""
    last_transition_time: AwareDatetime
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation this condition was set for."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16, json_schema_extra=LIST_MAP_BY_TYPE)]
"""`status.conditions`."""

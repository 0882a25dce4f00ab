"""The seam to the record: rows that reconcilers hand over, written when PostgreSQL is there.

A reconcile never waits for the record: `submit` keeps the newest row of each object in memory and a writer
catches up. What is lost with the process is derived again from the cluster and the hosts after a restart.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from toolbox_dtma.wire import CallRecord
from toolbox_operator.api.meta import Kind
from toolbox_operator.domain.usage import Use


@dataclass(frozen=True, slots=True)
class Observation:
    """Orders what a host said: newer wins, by (boot_id, observed_seq)."""

    boot_id: int
    seq: int


@dataclass(frozen=True, slots=True)
class ToolboxRow:
    """A row of account_tool_environments; `id` is the Toolbox's UID."""

    id: str
    namespace: str
    name: str
    generation: int
    endpoint: str
    gateway_url: str
    status: str
    host_id: str | None = None
    agent_version: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """A row of account_tool_instances; `id` is the instance id. `toolbox` makes the foreign key good.

    Rows within rows count only where they are strictly newer than what is known: the Toolbox's and the
    server's own reconcilers have the say.
    """

    id: str
    namespace: str
    name: str
    generation: int
    toolbox: ToolboxRow
    status: str
    """active, starting, stopped, error, unknown, pending or deleting."""
    image: str
    transport: str
    endpoint_path: str | None
    """None of a server that speaks stdio."""
    observation: Observation | None = None
    """None: nothing observed (yet, or the host is away); observed columns are then left, except `status` and
    `error_message`."""
    image_digest: str | None = None
    container: dict[str, Any] | None = None
    tools: list[dict[str, str]] | None = None
    capabilities: dict[str, Any] = field(default_factory=dict)
    error_message: str | None = None
    uid: str | None = None
    """UID of the MCPServer. An instance id may outlive it (export, apply again), and generations start anew with a
    new UID; left out, the row is taken for one object for ever."""


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A row of agent_mcp_connections; `id` is the connection's UID."""

    id: str
    namespace: str
    name: str
    generation: int
    agent_name: str
    instance: InstanceRow | None
    """None while the server is not known: the row is written once it is."""
    is_active: bool
    status: str
    """connected, disconnected, pending, denied, expired or error."""
    config: dict[str, Any] = field(default_factory=dict)
    """endpoint and transport; never a credential."""


Row = ToolboxRow | InstanceRow | ConnectionRow


@dataclass(frozen=True, slots=True)
class Live:
    """Ids of everything a complete list of the cluster has; rows of this cluster that are not in it are closed."""

    toolboxes: frozenset[str]
    instances: frozenset[str]
    connections: frozenset[str]


class Store(Protocol):
    """The record as reconcilers use it. Nothing here waits or raises."""

    def submit(self, row: Row) -> None:
        """Upsert soon. A row equal to the last one written is dropped."""
        ...

    def close(self, row: Row, reason: str) -> None:
        """Mark the row deleted soon: deleted_at and delete_reason (deleted, abandoned). It stays so for this UID."""
        ...

    def sweep(self, live: Live) -> None:
        """Close rows of this cluster that the given complete list does not have, with reason `swept`.

        The list must have been taken after the sweep before. A later `submit` of a swept object opens its row
        again: the list was behind.
        """
        ...

    def vanished(self, kind: Kind, namespace: str, name: str) -> None:
        """Close the row of an object that went without being let go (its finalizer was taken away, or it never had
        one), with reason `swept`; nothing when this process wrote none, or closed it.
        """
        ...

    def log(self, *, object_kind: str, object_id: str, type_: str, reason: str, message: str) -> None:
        """Append to lifecycle_events."""
        ...


class Refusal(StrEnum):
    """Why a call record is not kept."""

    UNREADABLE = "unreadable"
    """Not what this version knows as a call record."""
    CLOCK = "clock"
    """From a future day, or an earlier one than calls are kept: the host's clock is wrong, or it was away for long."""
    DATA = "data"
    """Not acceptable to PostgreSQL."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of call records that the host may forget now."""

    added: int = 0
    """Those that were not known before."""
    refused: Mapping[Refusal, int] = field(default_factory=dict[Refusal, int])
    used: Mapping[str, Use] = field(default_factory=dict[str, Use])
    """Of the connections that were called: all that was ever counted of them."""


class Record(Store, Protocol):
    """The record as the process runs it."""

    @property
    def healthy(self) -> bool:
        """Whether what is submitted is being written; False is a degraded process, never a reason to stop."""
        ...

    async def keep_calls(self, calls: Sequence[CallRecord], shown: Mapping[str, int]) -> Kept | None:
        """Keep call records, each once however often it comes. Returns when they are committed; None: they are not,
        and have to come again.

        `shown`: how many calls the status of each connection shows, below which no count starts.
        """
        ...

    async def used(self) -> Mapping[str, Use] | None:
        """All that was ever counted of this cluster's open connections; None when it cannot be told now."""
        ...

    async def run(self) -> None:
        """Write until cancelled. Raises only `Fenced`, when this process no longer leads."""
        ...

    async def flush(self, deadline: float) -> bool:
        """Wait up to `deadline` seconds until everything submitted is written; False when it is not.

        For a graceful stop, while `run` still runs.
        """
        ...


def agent_id(cluster_id: str, namespace: str, name: str) -> str:
    """The id of an agent's row: UUIDv5 of `namespace/name` within the cluster's UUID."""
    return str(uuid.uuid5(uuid.UUID(cluster_id), f"{namespace}/{name}"))

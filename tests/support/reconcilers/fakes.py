"""Stand-ins of the operator's surroundings for tests: a clock, leadership, bodies, what it records and tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from toolbox_operator.api.meta import API_VERSION, Body, Key, Kind
from toolbox_operator.runtime import Fenced
from toolbox_operator.store.api import ConnectionRow, InstanceRow, Live, Row, ToolboxRow


@dataclass
class ManualClock:
    """Time that passes only when told to."""

    seconds: float = 1000.0
    epoch: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.epoch + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Leading:
    """Leadership that a test switches off."""

    owner: str = "3c1b4ad0-5f0e-4b9e-8f6e-0d6b3e1f2a11"
    epoch: int = 1
    held: bool = True
    checks: int = 0

    def check(self) -> None:
        self.checks += 1
        if not self.held:
            raise Fenced("the test took leadership away")

    async def raise_epoch(self, above: int) -> None:
        self.epoch = max(self.epoch, above + 1)


@dataclass
class Asked:
    """A `Requeue` that remembers what it was asked."""

    now: list[tuple[Kind, Key]] = field(default_factory=list[tuple[Kind, Key]])
    later: list[tuple[Kind, Key, float]] = field(default_factory=list[tuple[Kind, Key, float]])

    def add(self, kind: Kind, key: Key) -> None:
        self.now.append((kind, key))

    def add_after(self, kind: Kind, key: Key, seconds: float) -> None:
        self.later.append((kind, key, seconds))

    def taken(self) -> set[tuple[Kind, Key]]:
        """What was asked for now, since the last call."""
        asked = set(self.now)
        self.now.clear()
        return asked


def body_of(
    kind: Kind, name: str, version: int, *, namespace: str = "ns", uid: str | None = None, **more: Any
) -> dict[str, Any]:
    """An object as the API server would send it; `metadata` in `more` is merged."""
    metadata: dict[str, Any] = {
        "namespace": namespace,
        "name": name,
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
        "generation": 1,
        **more.pop("metadata", {}),
    }
    return {"apiVersion": API_VERSION, "kind": str(kind), "metadata": metadata, **more}


def version(body: Body | None) -> str | None:
    """The resourceVersion, or None without a body."""
    return None if body is None else str(body["metadata"]["resourceVersion"])


@dataclass
class FakeStore:
    """What was handed to the record, newest per row id."""

    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    closed: dict[str, str] = field(default_factory=dict[str, str])
    logged: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def submit(self, row: Row) -> None:
        self.rows[row.id] = row
        self.closed.pop(row.id, None)

    def close(self, row: Row, reason: str) -> None:
        self.closed[row.id] = reason

    def sweep(self, live: Live) -> None: ...

    def vanished(self, kind: Kind, namespace: str, name: str) -> None:
        of_kind = {Kind.TOOLBOX: ToolboxRow, Kind.MCP_SERVER: InstanceRow, Kind.CONNECTION: ConnectionRow}[kind]
        for row in self.rows.values():
            if type(row) is of_kind and (row.namespace, row.name) == (namespace, name):
                self.closed.setdefault(row.id, "swept")

    def log(self, *, object_kind: str, object_id: str, type_: str, reason: str, message: str) -> None:
        self.logged.append((object_id, reason))


@dataclass
class FakeEvents:
    """Events in order, as (object, type, reason, note)."""

    items: list[tuple[str, str, str, str]] = field(default_factory=list[tuple[str, str, str, str]])

    def record(self, body: Body, type_: Literal["Normal", "Warning"], reason: str, note: str, action: str) -> None:
        self.items.append((body["metadata"]["name"], type_, reason, note))

    def reasons(self, name: str) -> list[str]:
        """Reasons of the Events about an object."""
        return [reason for about, _, reason, _ in self.items if about == name]

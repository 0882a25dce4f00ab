"""Rows as records: what is written into which table, and which guard each column answers to.

A record has three groups of columns. `spec` is what the object asks for: the higher generation wins.
`observed` is what the host said: the newer (boot_id, seq) wins. `verdict` is what the operator made of both
(status, error message): it comes with the observation it was made from, or, where there is none, with the spec.
`merge` is the one place where that is decided: for rows waiting in memory, and, under a row lock, for rows that an
earlier process or another leader has written.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, cast

from toolbox_operator.store.api import ConnectionRow, InstanceRow, Observation, Row, ToolboxRow, agent_id

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""PostgreSQL stores neither NUL nor lone surrogates, and both can arrive in what a server calls its tools."""


class Kind(IntEnum):
    """The tables that hold objects, in the order of their foreign keys."""

    TOOLBOX = 0
    INSTANCE = 1
    CONNECTION = 2


@dataclass(frozen=True, slots=True)
class Agent:
    """A row of agents: not an object of the cluster, but what its connections name."""

    id: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Record:
    """One row to write."""

    kind: Kind
    id: str
    uid: str
    """The object's UID. Generations compare only within one; an instance id may outlive several."""
    namespace: str
    name: str
    generation: int
    spec: Mapping[str, Any]
    verdict: Mapping[str, Any]
    observation: Observation | None = None
    observed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    agent: Agent | None = field(default=None, compare=False)
    """Of a connection: whose row is written with it."""

    @property
    def key(self) -> tuple[Kind, str]:
        """What the record is known by."""
        return (self.kind, self.id)

    @property
    def writable(self) -> bool:
        """Whether a row can be inserted; a connection whose server is not known yet can only be updated."""
        return self.kind is not Kind.CONNECTION or self.spec.get("mcp_server_instance_id") is not None


def records_of(row: Row, cluster_id: str) -> list[Record]:
    """The row as records, parents first and the row itself last."""
    match row:
        case ToolboxRow():
            return [_toolbox(row)]
        case InstanceRow():
            return [_toolbox(row.toolbox), _instance(row)]
        case ConnectionRow():
            parents = records_of(row.instance, cluster_id) if row.instance else []
            return [*parents, _connection(row, cluster_id)]


def _toolbox(row: ToolboxRow) -> Record:
    return Record(
        kind=Kind.TOOLBOX,
        id=canonical(row.id),
        uid=canonical(row.id),
        namespace=row.namespace,
        name=row.name,
        generation=row.generation,
        spec=_storable({"endpoint": row.endpoint, "gateway_url": row.gateway_url}),
        verdict=_storable({"status": row.status, "host_id": row.host_id, "agent_version": row.agent_version}),
    )


def _instance(row: InstanceRow) -> Record:
    return Record(
        kind=Kind.INSTANCE,
        id=canonical(row.id),
        uid=canonical(row.uid or row.id),
        namespace=row.namespace,
        name=row.name,
        generation=row.generation,
        spec=_storable(
            {
                "account_tool_environment_id": canonical(row.toolbox.id),
                "image": row.image,
                "mcp_transport_type": row.transport,
                "mcp_endpoint_path": row.endpoint_path,
            }
        ),
        verdict=_storable({"status_on_toolbox": row.status, "error_message": row.error_message}),
        observation=row.observation,
        observed=_storable(
            {
                "instance_name_on_toolbox": (row.container or {}).get("name"),
                "image_digest": row.image_digest,
                "container": row.container,
                "tools": row.tools,
                "mcp_server_capabilities": row.capabilities,
            }
        ),
    )


def _connection(row: ConnectionRow, cluster_id: str) -> Record:
    agent = agent_id(cluster_id, row.namespace, row.agent_name)
    spec: dict[str, Any] = {"agent_id": agent, "connection_config": row.config, "is_active": row.is_active}
    if row.instance is not None:
        spec["mcp_server_instance_id"] = canonical(row.instance.id)
    return Record(
        kind=Kind.CONNECTION,
        id=canonical(row.id),
        uid=canonical(row.id),
        namespace=row.namespace,
        name=row.name,
        generation=row.generation,
        spec=_storable(spec),
        verdict=_storable({"connection_status": row.status}),
        agent=Agent(agent, row.namespace, row.agent_name),
    )


def merge(old: Record, new: Record, *, direct: bool) -> Record:
    """What is true after both, in whatever order they came.

    `direct` is False for a record that came only along with another one, to make its foreign key good: it
    counts where it is strictly newer, so that a connection never takes back what its server said since.
    """
    if new.uid != old.uid:
        return new if direct else old
    spec_wins = new.generation > old.generation or (direct and new.generation == old.generation)
    if spec_wins and _moved(old, new):
        # Another host counts its observations anew.
        return new
    order = _order(new.observation, old.observation)
    observed_wins = order > 0 or (order == 0 and new.observation is not None and spec_wins)
    verdict_wins = observed_wins or (new.observation is None and spec_wins)
    return replace(
        new if spec_wins else old,
        spec={**old.spec, **new.spec} if spec_wins else old.spec,
        observation=new.observation if observed_wins else old.observation,
        observed=new.observed if observed_wins else old.observed,
        verdict=new.verdict if verdict_wins else old.verdict,
    )


def _moved(old: Record, new: Record) -> bool:
    column = "account_tool_environment_id"
    return old.spec.get(column) != new.spec.get(column)


def _order(new: Observation | None, old: Observation | None) -> int:
    """Positive when `new` is the later one; none at all is earlier than any."""
    a = (new.boot_id, new.seq) if new else (-1, -1)
    b = (old.boot_id, old.seq) if old else (-1, -1)
    return (a > b) - (a < b)


def _storable(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: storable(value) for name, value in columns.items()}


def storable(value: Any) -> Any:
    """The value as JSON that PostgreSQL can store: NUL and lone surrogates become U+FFFD, NaN and infinities null."""
    if isinstance(value, str):
        return UNSTORABLE.sub("�", value)
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {storable(key): storable(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [storable(item) for item in cast("list[Any]", value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    return str(value)


def row_ids(ids: Iterable[str]) -> frozenset[str]:
    """Those that a row can have, canonical. An object may carry anything as its id; no row was written for that."""
    return frozenset(known for id_ in ids if (known := _as_uuid(id_)) is not None)


def canonical(id_: str) -> str:
    """The id as PostgreSQL spells a uuid; what is none is left for PostgreSQL to refuse."""
    return _as_uuid(id_) or id_


def _as_uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None

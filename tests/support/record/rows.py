"""Rows, a leader and a running store for tests of the record."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.sql import SQL

from toolbox_operator.runtime import Fenced, SystemClock
from toolbox_operator.store.api import ConnectionRow, InstanceRow, Observation, ToolboxRow
from toolbox_operator.store.sql import Limits, SqlStore

CLUSTER = "11111111-1111-4111-8111-111111111111"
OTHER_CLUSTER = "22222222-2222-4222-8222-222222222222"
PATIENT = Limits(
    connect=20, statement=20, lock=20, transaction=30, backoff_first=0.02, backoff_max=0.2, events=5, maintenance=60
)
"""Where no deadline is waited out: a busy machine holds up any statement for some seconds."""
QUICK = replace(PATIENT, connect=2, statement=2, lock=1, transaction=4)
"""Where one is."""


def new_id() -> str:
    """A fresh UUID."""
    return str(uuid.uuid4())


@dataclass
class Leader:
    """A leadership that tests take away."""

    epoch: int = 1
    owner: str = CLUSTER
    lost: bool = False

    def check(self) -> None:
        """As `Leadership`."""
        if self.lost:
            raise Fenced("the lease's deadline has passed")

    async def raise_epoch(self, above: int) -> None:
        """As `Leadership`."""
        self.epoch = max(self.epoch, above + 1)


@dataclass(frozen=True)
class World:
    """Ids of one toolbox, one server on it and one connection to that."""

    namespace: str = "mcp-system"
    toolbox_id: str = field(default_factory=new_id)
    instance_id: str = field(default_factory=new_id)
    uid: str = field(default_factory=new_id)
    connection_id: str = field(default_factory=new_id)

    def toolbox(self, generation: int = 1, *, status: str = "ready", endpoint: str = "https://h:30000") -> ToolboxRow:
        """A row of the toolbox."""
        return ToolboxRow(
            id=self.toolbox_id,
            namespace=self.namespace,
            name="tbx-1",
            generation=generation,
            endpoint=endpoint,
            gateway_url="https://h:30443",
            status=status,
        )

    def instance(
        self,
        generation: int = 1,
        seen: tuple[int, int] | None = None,
        *,
        status: str = "active",
        image: str = "time:1",
        tools: Sequence[str] = (),
        uid: str | None = None,
        name: str = "time",
        stdio: bool = False,
    ) -> InstanceRow:
        """A row of the server; `seen` is boot id and sequence number."""
        return InstanceRow(
            id=self.instance_id,
            uid=uid or self.uid,
            namespace=self.namespace,
            name=name,
            generation=generation,
            toolbox=self.toolbox(),
            status=status,
            image=image,
            transport="stdio" if stdio else "streamable-http",
            endpoint_path=None if stdio else "/mcp",
            observation=Observation(*seen) if seen else None,
            tools=[{"name": tool, "description": ""} for tool in tools] if seen else None,
            container={"name": f"mtb-{self.instance_id[:8]}", "state": "running"} if seen else None,
        )

    def connection(
        self,
        generation: int = 1,
        *,
        status: str = "connected",
        active: bool = True,
        instance: InstanceRow | None = None,
        waiting: bool = False,
        agent: str = "research-bot",
    ) -> ConnectionRow:
        """A row of the connection; `waiting` leaves the server unknown."""
        return ConnectionRow(
            id=self.connection_id,
            namespace="team-a",
            name=f"bot-{self.namespace}",
            generation=generation,
            agent_name=agent,
            instance=None if waiting else instance or self.instance(),
            is_active=active,
            status=status,
            config={"endpoint": "https://h:30443/servers/x/mcp", "transport": "streamable-http"},
        )


async def query(dsn: str, statement: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """All rows of a statement, on a connection of its own."""
    async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5, autocommit=True) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        # The tests' own statements, in constants.
        await cursor.execute(SQL(statement), parameters)  # pyright: ignore[reportArgumentType] -- not all are literals
        return await cursor.fetchall() if cursor.description else []


async def row_of(dsn: str, table: str, id_: str) -> dict[str, Any]:
    """The row with this id."""
    rows = await query(dsn, f"SELECT * FROM magic_toolbox.{table} WHERE id = %(id)s", {"id": id_})  # noqa: S608 -- a constant
    assert len(rows) == 1, f"{table} {id_}: {len(rows)} rows"
    return rows[0]


async def until_written(store: SqlStore, seconds: float = 15.0) -> None:
    """Everything submitted is in the database."""
    assert await store.flush(seconds), f"still not written: {store.backlog}, healthy: {store.healthy}"


@asynccontextmanager
async def running(
    dsn: str,
    leader: Leader | None = None,
    *,
    cluster_id: str = CLUSTER,
    limits: Limits = PATIENT,
) -> AsyncGenerator[SqlStore]:
    """A store whose writer runs: one process's life."""
    store = SqlStore(dsn, cluster_id, leader or Leader(), SystemClock(), limits=limits)
    writer = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer

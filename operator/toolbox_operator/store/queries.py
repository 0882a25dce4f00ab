"""Every statement of the writer. All of them can be repeated: an unknown outcome is answered by doing it again.

Rows are read under a lock, `decide` says what becomes of them, and they are written back. Each write still
carries the fence `epoch <= :p_epoch`, so that whatever was decided, a later leader's row is never overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    Select,
    Table,
    TextClause,
    Update,
    and_,
    any_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP, UUID, Insert, insert
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import Text

from toolbox_operator.store.pending import REPLACED, SWEPT
from toolbox_operator.store.records import Kind
from toolbox_operator.store.schema import (
    account_tool_environments,
    account_tool_instances,
    agent_mcp_connections,
    agents,
    lifecycle_events,
)

UNUSED = "unused"
TABLES: Mapping[Kind, Table] = {
    Kind.TOOLBOX: account_tool_environments,
    Kind.INSTANCE: account_tool_instances,
    Kind.CONNECTION: agent_mcp_connections,
}
SPEC: Mapping[Kind, tuple[str, ...]] = {
    Kind.TOOLBOX: ("endpoint", "gateway_url"),
    Kind.INSTANCE: ("account_tool_environment_id", "image", "mcp_transport_type", "mcp_endpoint_path"),
    Kind.CONNECTION: ("agent_id", "mcp_server_instance_id", "connection_config", "is_active"),
}
OBSERVED: Mapping[Kind, tuple[str, ...]] = {
    Kind.TOOLBOX: (),
    Kind.INSTANCE: ("instance_name_on_toolbox", "image_digest", "container", "tools", "mcp_server_capabilities"),
    Kind.CONNECTION: (),
}
VERDICT: Mapping[Kind, tuple[str, ...]] = {
    Kind.TOOLBOX: ("status", "host_id", "agent_version"),
    Kind.INSTANCE: ("status_on_toolbox", "error_message"),
    Kind.CONNECTION: ("connection_status",),
}
COMMON = (
    "id",
    "cluster_id",
    "namespace",
    "name",
    "spec_generation",
    "boot_id",
    "observed_seq",
    "epoch",
    "deleted_at",
    "delete_reason",
)


def bound(table: Table, name: str) -> BindParameter[Any]:
    """The parameter that carries a column's value; prefixed, as column names are taken in INSERT and UPDATE."""
    return bindparam(f"p_{name}", type_=table.c[name].type)


def _array(name: str, item: UUID[str] | Text) -> BindParameter[Any]:
    return bindparam(f"p_{name}", type_=ARRAY(item))


def columns_of(kind: Kind) -> tuple[str, ...]:
    """Every column that is written for this kind."""
    own = ("uid",) if kind is Kind.INSTANCE else ()
    return (*COMMON, *own, *SPEC[kind], *OBSERVED[kind], *VERDICT[kind])


@cache
def lock_by_id(kind: Kind) -> Select[Any]:
    """The rows with these ids; locked, in one order for all writers."""
    c = TABLES[kind].c
    return _locked(kind).where(c.id == any_(_array("ids", UUID(as_uuid=False))))


@cache
def lock_by_name(kind: Kind) -> Select[Any]:
    """The open rows of this cluster with these names (two arrays of one length); locked."""
    c = TABLES[kind].c
    names = (
        func.unnest(_array("namespaces", Text()), _array("names", Text()))
        .table_valued("namespace", "name")
        .render_derived()
    )
    wanted = select(names.c.namespace, names.c.name)
    return _locked(kind).where(
        c.cluster_id == bindparam("p_cluster_id", type_=c.cluster_id.type),
        c.deleted_at.is_(None),
        tuple_(c.namespace, c.name).in_(wanted),
    )


def _locked(kind: Kind) -> Select[Any]:
    table = TABLES[kind]
    return select(*(table.c[name] for name in columns_of(kind))).order_by(table.c.id).with_for_update(of=table)


@cache
def insert_row(kind: Kind) -> ReturningInsert[tuple[str]]:
    """A new row, by column names; answers its id. One that appeared meanwhile is left, and not answered."""
    table = TABLES[kind]
    return insert(table).on_conflict_do_nothing(index_elements=[table.c.id]).returning(table.c.id)


@cache
def update_row(kind: Kind) -> Update:
    """Write a row back, unless a later leader has it; `updated_at` moves when p_changed says so."""
    table = TABLES[kind]
    epoch = bound(table, "epoch")
    written = [name for name in columns_of(kind) if name != "id"]
    changed = case((bindparam("p_changed"), func.now()), else_=table.c.updated_at)
    return (
        update(table)
        # Rows of other clusters count their own epochs.
        .where(table.c.id == bound(table, "id"))
        .where(or_(table.c.epoch <= epoch, table.c.cluster_id != bound(table, "cluster_id")))
        .values({**{table.c[name]: bound(table, name) for name in written}, table.c.updated_at: changed})
    )


def _closing(table: Table, reason: str) -> Update:
    """Close open rows of this cluster that no later leader has written; takes `at`, `cluster_id` and `epoch`."""
    epoch = bound(table, "epoch")
    return (
        update(table)
        .where(
            table.c.cluster_id == bound(table, "cluster_id"),
            table.c.deleted_at.is_(None),
            table.c.epoch <= epoch,
        )
        .values(
            {
                table.c.deleted_at: bindparam("p_at", type_=TIMESTAMP(timezone=True)),
                table.c.delete_reason: literal(reason),
                table.c.updated_at: func.now(),
                table.c.epoch: epoch,
            }
        )
    )


@cache
def close_replaced(kind: Kind) -> Update:
    """Close the rows in `ids`, whose names have passed on to objects made anew."""
    table = TABLES[kind]
    return _closing(table, REPLACED).where(table.c.id.in_(select(func.unnest(_array("ids", UUID(as_uuid=False))))))


@cache
def sweep(kind: Kind) -> Update:
    """Close every open row of this cluster whose id is not in `keep`."""
    table = TABLES[kind]
    keep = select(func.unnest(_array("keep", UUID(as_uuid=False))))
    return _closing(table, SWEPT).where(table.c.id.not_in(keep))


@cache
def upsert_agent() -> Insert:
    """Make sure that an agent's row is there and open."""
    names = ("id", "cluster_id", "namespace", "name", "epoch")
    statement = insert(agents).values({name: bound(agents, name) for name in names})
    new = statement.excluded
    closed = agents.c.deleted_at.is_not(None)
    return statement.on_conflict_do_update(
        index_elements=[agents.c.id],
        set_={
            "deleted_at": None,
            "delete_reason": None,
            "epoch": new.epoch,
            "updated_at": case((closed, func.now()), else_=agents.c.updated_at),
        },
        where=and_(agents.c.epoch <= new.epoch, or_(closed, agents.c.epoch < new.epoch)),
    )


@cache
def close_unused_agents(*, chosen: bool) -> Update:
    """Close agents without an open connection: all of this cluster's, or those in `ids`."""
    connections = agent_mcp_connections.c
    used = select(literal(1)).where(connections.agent_id == agents.c.id, connections.deleted_at.is_(None)).exists()
    statement = _closing(agents, UNUSED).where(~used)
    if chosen:
        statement = statement.where(agents.c.id.in_(select(func.unnest(_array("ids", UUID(as_uuid=False))))))
    return statement


@cache
def insert_event() -> Insert:
    """Append to lifecycle_events, once."""
    return insert(lifecycle_events).on_conflict_do_nothing(index_elements=[lifecycle_events.c.id])


CALL_DAYS = text("SELECT sum(magic_toolbox.ensure_call_partitions(day, day)) FROM unnest(CAST(:days AS date[])) AS day")
"""Partitions for these days, which need not follow each other."""

INSERT_CALLS = text(
    """
WITH taken AS (
    INSERT INTO magic_toolbox.agent_mcp_calls (id, created_at, connection_id, agent_id, instance_id, tool, outcome,
        duration_ms, bytes_in, bytes_out, protocol_version, trace_id)
    SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:times AS timestamptz[]), CAST(:connections AS uuid[]),
        CAST(:agents AS uuid[]), CAST(:instances AS uuid[]), CAST(:tools AS text[]), CAST(:outcomes AS text[]),
        CAST(:durations AS integer[]), CAST(:bytes_in AS bigint[]), CAST(:bytes_out AS bigint[]),
        CAST(:versions AS text[]), CAST(:traces AS text[]))
    ON CONFLICT (id, created_at) DO NOTHING
    RETURNING connection_id, created_at
), added AS (
    SELECT connection_id, count(*) AS calls, max(created_at) AS last_used_at FROM taken GROUP BY connection_id
), total AS (
    INSERT INTO magic_toolbox.agent_mcp_usage AS known (connection_id, cluster_id, calls, last_used_at)
    SELECT added.connection_id, :cluster_id, shown.calls + added.calls, added.last_used_at
    FROM added JOIN unnest(CAST(:known AS uuid[]), CAST(:shown AS bigint[])) AS shown (connection_id, calls)
        USING (connection_id)
    ORDER BY added.connection_id
    ON CONFLICT (connection_id) DO UPDATE SET
        calls = greatest(excluded.calls, known.calls
            + (SELECT added.calls FROM added WHERE added.connection_id = excluded.connection_id)),
        last_used_at = greatest(known.last_used_at, excluded.last_used_at)
    RETURNING connection_id, calls, last_used_at
)
SELECT total.connection_id, total.calls, total.last_used_at, added.calls AS added
FROM total JOIN added USING (connection_id)
"""
)
"""New calls into agent_mcp_calls, and their number on top of what agent_mcp_usage, or a status, says; answers the sums.

What is known already is neither inserted nor counted, so that a batch may come any number of times."""

USED = text(
    "SELECT u.connection_id, u.calls, u.last_used_at FROM magic_toolbox.agent_mcp_usage u"
    " JOIN magic_toolbox.agent_mcp_connections c ON c.id = u.connection_id"
    " WHERE u.cluster_id = :cluster_id AND c.cluster_id = :cluster_id AND c.deleted_at IS NULL"
)

EXPIRED_EVENTS = text("SELECT id FROM magic_toolbox.lifecycle_events WHERE id < CAST(:bound AS uuid) LIMIT :limit")
"""Ids of lifecycle events, of any cluster, from before the time that `bound` carries."""

DELETE_EVENTS = text("DELETE FROM magic_toolbox.lifecycle_events WHERE id = ANY (CAST(:ids AS uuid[]))")

LIMITS = text(
    "SELECT set_config('statement_timeout', :statement_timeout, true), set_config('lock_timeout', :lock_timeout, true),"
    " set_config('idle_in_transaction_session_timeout', :statement_timeout, true)"
)
"""Deadlines of the current transaction, in milliseconds. Not session settings: a pooler may be in between."""

EXPIRED_PARTITIONS = text(
    "SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid"
    " WHERE inhparent = to_regclass('magic_toolbox.agent_mcp_calls')"
    " AND child.relname ~ '^agent_mcp_calls_[0-9]{8}$' AND child.relname < 'agent_mcp_calls_' || :oldest ORDER BY 1"
)
"""Daily partitions of days before `oldest` (YYYYMMDD); what people attached under other names is theirs."""


def drop_partition(name: str) -> TextClause:
    """Remove a whole day of calls. `name` comes from `EXPIRED_PARTITIONS`."""
    return text(f'DROP TABLE IF EXISTS magic_toolbox."{name}"')


BRIEFLY = text("SELECT set_config('lock_timeout', '1000', true)")
"""For locks that hold up every reader of calls while they are waited for."""

PARTITIONS = text("SELECT magic_toolbox.ensure_call_partitions(:first, :last)")
"""Daily partitions of agent_mcp_calls; answers how many were missing."""

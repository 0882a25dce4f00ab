"""Tables of the record, in the PostgreSQL schema `magic_toolbox`, under the platform's names.

Five tables share the columns of `common`. Nothing is ever deleted: a row is closed by `deleted_at` and
`delete_reason`, and a name is unique among the open rows of a cluster only. Migrations, not this module,
create the tables; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID
from sqlalchemy.schema import SchemaItem

SCHEMA = "magic_toolbox"
GENERIC_CATALOG_ID = "00000000-0000-0000-0000-000000000001"
"""The row of tool_catalog that every MCP server's instance refers to."""

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
    },
)


def _uuid() -> UUID[str]:
    return UUID(as_uuid=False)


def _time() -> TIMESTAMP:
    return TIMESTAMP(timezone=True)


def common(*, of_cluster: bool = True) -> Sequence[Column[Any]]:
    """The columns of the first five tables; `of_cluster` is False where rows belong to no cluster."""
    return (
        Column("cluster_id", _uuid(), nullable=not of_cluster),
        Column("namespace", Text, nullable=not of_cluster),
        Column("name", Text, nullable=False),
        Column("spec_generation", BigInteger, nullable=False, server_default=text("0")),
        Column("boot_id", BigInteger),
        Column("observed_seq", BigInteger),
        Column("epoch", BigInteger, nullable=False, server_default=text("0")),
        Column("created_at", _time(), nullable=False, server_default=text("now()")),
        Column("updated_at", _time(), nullable=False, server_default=text("now()")),
        Column("deleted_at", _time()),
        Column("delete_reason", Text),
    )


def _of_cluster(name: str, *own: SchemaItem) -> Table:
    table = Table(
        name,
        metadata,
        Column("id", _uuid(), primary_key=True),
        *common(),
        *own,
        CheckConstraint("(deleted_at IS NULL) = (delete_reason IS NULL)", name="closed"),
        CheckConstraint("(boot_id IS NULL) = (observed_seq IS NULL)", name="observed"),
    )
    Index(
        f"{name}_live_name_key",
        table.c.cluster_id,
        table.c.namespace,
        table.c.name,
        unique=True,
        postgresql_where=text("deleted_at IS NULL"),
    )
    return table


account_tool_environments = _of_cluster(
    "account_tool_environments",
    Column("endpoint", Text, nullable=False),
    Column("gateway_url", Text, nullable=False),
    Column("host_id", Text),
    Column("status", Text, nullable=False),
    Column("agent_version", Text),
)

tool_catalog = Table(
    "tool_catalog",
    metadata,
    Column("id", _uuid(), primary_key=True),
    *common(of_cluster=False),
    Column("docker_image_url", Text, nullable=False),
    Column("defaults", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
)
Index("tool_catalog_name_key", tool_catalog.c.name, unique=True)

account_tool_instances = _of_cluster(
    "account_tool_instances",
    Column("uid", _uuid()),
    Column(
        "account_tool_environment_id",
        _uuid(),
        ForeignKey(f"{SCHEMA}.account_tool_environments.id"),
        nullable=False,
        index=True,
    ),
    Column(
        "tool_catalog_id",
        _uuid(),
        ForeignKey(f"{SCHEMA}.tool_catalog.id"),
        nullable=False,
        server_default=text(f"'{GENERIC_CATALOG_ID}'"),
    ),
    Column("instance_name_on_toolbox", Text),
    Column("status_on_toolbox", Text, nullable=False),
    Column("mcp_server_type", Text, nullable=False, server_default=text("'mcp_server'")),
    Column("mcp_transport_type", Text, nullable=False),
    Column("mcp_endpoint_path", Text),
    Column("mcp_server_capabilities", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("image", Text, nullable=False),
    Column("image_digest", Text),
    Column("container", JSONB(none_as_null=True)),
    Column("tools", JSONB(none_as_null=True)),
    Column("error_message", Text),
    CheckConstraint(
        "status_on_toolbox IN ('active', 'starting', 'stopped', 'error', 'unknown', 'pending', 'deleting')",
        name="status",
    ),
)

agents = _of_cluster("agents")

agent_mcp_connections = _of_cluster(
    "agent_mcp_connections",
    Column("agent_id", _uuid(), ForeignKey(f"{SCHEMA}.agents.id"), nullable=False, index=True),
    Column(
        "mcp_server_instance_id",
        _uuid(),
        ForeignKey(f"{SCHEMA}.account_tool_instances.id"),
        nullable=False,
        index=True,
    ),
    Column("connection_config", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("is_active", Boolean, nullable=False),
    Column("connection_status", Text, nullable=False),
    CheckConstraint(
        "connection_status IN ('connected', 'disconnected', 'pending', 'denied', 'expired', 'error', 'deleting')",
        name="status",
    ),
)

agent_mcp_calls = Table(
    "agent_mcp_calls",
    metadata,
    Column("id", _uuid(), nullable=False),
    # When the call began, by the host's clock. The record carries it, so one that is delivered twice meets its own
    # key.
    Column("created_at", _time(), nullable=False),
    Column("connection_id", _uuid(), nullable=False),
    Column("agent_id", _uuid(), nullable=False),
    Column("instance_id", _uuid(), nullable=False),
    Column("subject", Text),
    Column("tool", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("protocol_version", Text),
    Column("trace_id", Text),
    PrimaryKeyConstraint("id", "created_at"),
    CheckConstraint(
        "outcome IN ('ok', 'tool_error', 'rpc_error', 'input_required', 'task', 'denied', 'limited', 'cancelled',"
        " 'timeout', 'upstream_error', 'detached')",
        name="outcome",
    ),
    postgresql_partition_by="RANGE (created_at)",
)
Index("agent_mcp_calls_connection_id_idx", agent_mcp_calls.c.connection_id, agent_mcp_calls.c.created_at)
Index("agent_mcp_calls_instance_id_idx", agent_mcp_calls.c.instance_id, agent_mcp_calls.c.created_at)

agent_mcp_usage = Table(
    "agent_mcp_usage",
    metadata,
    Column("connection_id", _uuid(), primary_key=True),
    Column("cluster_id", _uuid(), nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("last_used_at", _time(), nullable=False),
)

lifecycle_events = Table(
    "lifecycle_events",
    metadata,
    Column("id", _uuid(), primary_key=True),
    Column("cluster_id", _uuid(), nullable=False),
    Column("created_at", _time(), nullable=False),
    Column("object_kind", Text, nullable=False),
    Column("object", _uuid(), nullable=False),
    Column("type", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
)
Index("lifecycle_events_object_idx", lifecycle_events.c.object, lifecycle_events.c.created_at)

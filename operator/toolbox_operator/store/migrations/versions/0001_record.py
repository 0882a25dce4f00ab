"""The record's tables, the daily partitions of calls, and the catalog row of MCP servers."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

COMMON = """
    name text NOT NULL,
    spec_generation bigint NOT NULL DEFAULT 0,
    boot_id bigint,
    observed_seq bigint,
    epoch bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    delete_reason text
"""

OF_CLUSTER = f"id uuid PRIMARY KEY, cluster_id uuid NOT NULL, namespace text NOT NULL, {COMMON}"


def _checks(table: str) -> str:
    return f"""
    CONSTRAINT {table}_closed_check CHECK ((deleted_at IS NULL) = (delete_reason IS NULL)),
    CONSTRAINT {table}_observed_check CHECK ((boot_id IS NULL) = (observed_seq IS NULL))
    """


def _live_name(table: str) -> str:
    return f"""
CREATE UNIQUE INDEX {table}_live_name_key ON magic_toolbox.{table} (cluster_id, namespace, name)
    WHERE deleted_at IS NULL
"""


STATEMENTS = (
    f"""
CREATE TABLE magic_toolbox.account_tool_environments (
    {OF_CLUSTER},
    endpoint text NOT NULL,
    gateway_url text NOT NULL,
    host_id text,
    status text NOT NULL,
    agent_version text,
    {_checks("account_tool_environments")}
)
""",
    _live_name("account_tool_environments"),
    f"""
CREATE TABLE magic_toolbox.tool_catalog (
    id uuid PRIMARY KEY, cluster_id uuid, namespace text, {COMMON},
    docker_image_url text NOT NULL,
    defaults jsonb NOT NULL DEFAULT '{{}}'::jsonb
)
""",
    "CREATE UNIQUE INDEX tool_catalog_name_key ON magic_toolbox.tool_catalog (name)",
    """
INSERT INTO magic_toolbox.tool_catalog (id, name, docker_image_url, defaults)
VALUES ('00000000-0000-0000-0000-000000000001', 'mcp-server-generic', 'mcpserver/generic:latest',
        '{"transport": "streamable-http", "path": "/mcp"}'::jsonb)
""",
    f"""
CREATE TABLE magic_toolbox.account_tool_instances (
    {OF_CLUSTER},
    uid uuid,
    account_tool_environment_id uuid NOT NULL REFERENCES magic_toolbox.account_tool_environments (id),
    tool_catalog_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000001'
        REFERENCES magic_toolbox.tool_catalog (id),
    instance_name_on_toolbox text,
    status_on_toolbox text NOT NULL,
    mcp_server_type text NOT NULL DEFAULT 'mcp_server',
    mcp_transport_type text NOT NULL,
    mcp_endpoint_path text NOT NULL,
    mcp_server_capabilities jsonb NOT NULL DEFAULT '{{}}'::jsonb,
    image text NOT NULL,
    image_digest text,
    container jsonb,
    tools jsonb,
    error_message text,
    CONSTRAINT account_tool_instances_status_check CHECK (status_on_toolbox IN
        ('active', 'starting', 'stopped', 'error', 'unknown', 'pending', 'deleting')),
    {_checks("account_tool_instances")}
)
""",
    _live_name("account_tool_instances"),
    """
CREATE INDEX account_tool_instances_account_tool_environment_id_idx
    ON magic_toolbox.account_tool_instances (account_tool_environment_id)
""",
    f"""
CREATE TABLE magic_toolbox.agents (
    {OF_CLUSTER},
    {_checks("agents")}
)
""",
    _live_name("agents"),
    f"""
CREATE TABLE magic_toolbox.agent_mcp_connections (
    {OF_CLUSTER},
    agent_id uuid NOT NULL REFERENCES magic_toolbox.agents (id),
    mcp_server_instance_id uuid NOT NULL REFERENCES magic_toolbox.account_tool_instances (id),
    connection_config jsonb NOT NULL DEFAULT '{{}}'::jsonb,
    is_active boolean NOT NULL,
    connection_status text NOT NULL,
    CONSTRAINT agent_mcp_connections_status_check CHECK (connection_status IN
        ('connected', 'disconnected', 'pending', 'denied', 'expired', 'error', 'deleting')),
    {_checks("agent_mcp_connections")}
)
""",
    _live_name("agent_mcp_connections"),
    "CREATE INDEX agent_mcp_connections_agent_id_idx ON magic_toolbox.agent_mcp_connections (agent_id)",
    """
CREATE INDEX agent_mcp_connections_mcp_server_instance_id_idx
    ON magic_toolbox.agent_mcp_connections (mcp_server_instance_id)
""",
    """
CREATE TABLE magic_toolbox.agent_mcp_calls (
    id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    connection_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    instance_id uuid NOT NULL,
    subject text,
    tool text NOT NULL,
    outcome text NOT NULL,
    duration_ms integer NOT NULL,
    bytes_in bigint NOT NULL,
    bytes_out bigint NOT NULL,
    protocol_version text,
    trace_id text,
    CONSTRAINT agent_mcp_calls_pkey PRIMARY KEY (id, created_at),
    CONSTRAINT agent_mcp_calls_outcome_check CHECK (outcome IN ('ok', 'tool_error', 'rpc_error', 'input_required',
        'task', 'denied', 'limited', 'cancelled', 'timeout', 'upstream_error', 'detached'))
) PARTITION BY RANGE (created_at)
""",
    "CREATE INDEX agent_mcp_calls_connection_id_idx ON magic_toolbox.agent_mcp_calls (connection_id, created_at)",
    "CREATE INDEX agent_mcp_calls_instance_id_idx ON magic_toolbox.agent_mcp_calls (instance_id, created_at)",
    # Created apart and then attached: that locks the table only against other changes of its shape, while
    # CREATE TABLE … PARTITION OF would wait for, and hold up, everybody who reads or writes calls.
    """
CREATE FUNCTION magic_toolbox.ensure_call_partitions(first_day date, last_day date) RETURNS integer
LANGUAGE plpgsql AS $function$
DECLARE
    day date := first_day;
    partition_name text;
    created integer := 0;
BEGIN
    IF last_day - first_day > 400 THEN
        RAISE EXCEPTION 'refusing to create partitions for % days', last_day - first_day;
    END IF;
    WHILE day <= last_day LOOP
        partition_name := 'agent_mcp_calls_' || to_char(day, 'YYYYMMDD');
        IF to_regclass('magic_toolbox.' || partition_name) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE magic_toolbox.%I '
                '(LIKE magic_toolbox.agent_mcp_calls INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                partition_name);
            EXECUTE format(
                'ALTER TABLE magic_toolbox.agent_mcp_calls '
                'ATTACH PARTITION magic_toolbox.%I FOR VALUES FROM (%L) TO (%L)',
                partition_name, day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
            created := created + 1;
        END IF;
        day := day + 1;
    END LOOP;
    RETURN created;
END
$function$
""",
    """
CREATE TABLE magic_toolbox.lifecycle_events (
    id uuid PRIMARY KEY,
    cluster_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    object_kind text NOT NULL,
    object uuid NOT NULL,
    type text NOT NULL,
    reason text NOT NULL,
    message text NOT NULL
)
""",
    "CREATE INDEX lifecycle_events_object_idx ON magic_toolbox.lifecycle_events (object, created_at)",
    # People who log in with the same role find the tables without naming the schema. The operator itself
    # always names it.
    """
DO $$ BEGIN
    EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = magic_toolbox, public',
                   current_user, current_database());
END $$
""",
)


def upgrade() -> None:
    """Create everything."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused: the record is history, and nothing in this project deletes it."""
    raise NotImplementedError("the record is never removed by a migration; drop the schema magic_toolbox by hand")

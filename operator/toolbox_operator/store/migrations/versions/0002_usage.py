"""How much each connection was used: counted in the transaction that its calls are written in."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

USAGE = """
CREATE TABLE magic_toolbox.agent_mcp_usage (
    connection_id uuid PRIMARY KEY,
    cluster_id uuid NOT NULL,
    calls bigint NOT NULL,
    last_used_at timestamptz NOT NULL
)
"""


def upgrade() -> None:
    """Create it, empty."""
    op.execute(USAGE)


def downgrade() -> None:
    """Refused: the record is history, and nothing in this project deletes it."""
    raise NotImplementedError("the record is never removed by a migration; drop the schema magic_toolbox by hand")

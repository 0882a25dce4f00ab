"""A server that speaks stdio answers on no path."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

NULLABLE = "ALTER TABLE magic_toolbox.account_tool_instances ALTER COLUMN mcp_endpoint_path DROP NOT NULL"


def upgrade() -> None:
    """Let it be NULL."""
    op.execute(NULLABLE)


def downgrade() -> None:
    """Refused: the record is history, and nothing in this project deletes it."""
    raise NotImplementedError("the record is never removed by a migration; drop the schema magic_toolbox by hand")

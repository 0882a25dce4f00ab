"""Alembic's entry point: runs on the connection, and inside the transaction, that `migrate` hands over."""

from __future__ import annotations

from alembic import context

from toolbox_operator.store.schema import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
)
with context.begin_transaction():
    context.run_migrations()

"""Brings the database's schema up to this version of the operator, safely beside others that try the same."""

from __future__ import annotations

from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from toolbox_operator.store.schema import SCHEMA

log = structlog.get_logger(__name__)

MIGRATION_LOCK = 0x6D74625F7265636F
"""Key of the advisory lock (`mtb_reco`)."""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    location = str(Path(__file__).with_name("migrations"))
    # Config is an ini file underneath, where % starts an interpolation.
    config.set_main_option("script_location", location.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest revision that this version of the operator knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("no migrations in the package: the installation is incomplete")
    return revision


async def migrate(connection: AsyncConnection, *, lock_timeout: float = 30.0, statement_timeout: float = 120.0) -> str:
    """Migrate inside the connection's transaction, which the caller commits; returns the revision it found or made.

    Waits up to `lock_timeout` seconds for another migrator and for locks of readers; raises the database's own
    error after that, and nothing has changed. A schema newer than this code is left alone.
    """
    for setting, seconds in (("lock_timeout", lock_timeout), ("statement_timeout", statement_timeout)):
        await connection.execute(
            text("SELECT set_config(:setting, :value, true)"), {"setting": setting, "value": f"{seconds * 1000:.0f}"}
        )
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    # CREATE SCHEMA asks for the right to create one even where it exists, and a careful administrator made it.
    exists = await connection.scalar(text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": SCHEMA})
    if not exists:
        await connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    return await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> str:
    config = _config(connection)
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    current = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA}).get_current_revision()
    if current is not None and current not in known:
        # Rolled back to an older operator: migrations only ever add, so it can go on writing.
        log.warning("record.schema_is_newer", revision=current)
        return current
    target = scripts.get_current_head()
    if current == target and current is not None:
        return current
    command.upgrade(config, "head")
    log.info("record.migrated", before=current, after=target)
    return target or ""

"""Calls are kept for a while, and go by whole days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from support.record.rows import World, query, running, until_written
from toolbox_operator.store.sql import DEFAULTS

pytestmark = pytest.mark.integration

PARTITIONS = """
    SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
    WHERE inhparent = 'magic_toolbox.agent_mcp_calls'::regclass
"""


def named(days_ago: int) -> str:
    return f"agent_mcp_calls_{datetime.now(UTC).date() - timedelta(days=days_ago):%Y%m%d}"


async def partitions(dsn: str) -> set[str]:
    return {row["relname"] for row in await query(dsn, PARTITIONS)}


async def filled(dsn: str, kept: int) -> None:
    """A migrated database with partitions around the end of what is kept."""
    async with running(dsn) as store:
        store.submit(World().toolbox())
        await until_written(store)
    await query(
        dsn,
        "SELECT magic_toolbox.ensure_call_partitions(current_date - %(kept)s - 3, current_date - %(kept)s + 1)",
        {"kept": kept},
    )


async def test_days_beyond_what_is_kept_are_dropped_and_no_others(postgres: str) -> None:
    kept = DEFAULTS.calls_kept
    await filled(postgres, kept)
    await query(postgres, "CREATE TABLE magic_toolbox.agent_mcp_calls_archive (LIKE magic_toolbox.agent_mcp_calls)")
    before = await partitions(postgres)
    async with running(postgres) as store:
        store.submit(World().toolbox())
        await until_written(store)
    assert before - await partitions(postgres) == {named(kept + days) for days in (1, 2, 3)}
    assert await query(postgres, "SELECT to_regclass('magic_toolbox.agent_mcp_calls_archive') AS there") != []


async def test_a_day_that_somebody_reads_waits_and_holds_up_no_row(postgres: str) -> None:
    kept, world = DEFAULTS.calls_kept, World()
    await filled(postgres, kept)
    read = named(kept + 2)
    async with await psycopg.AsyncConnection.connect(postgres) as reader:
        await reader.execute(f'SELECT * FROM magic_toolbox."{read}"'.encode())  # noqa: S608 -- a name made here
        async with running(postgres) as store:
            store.submit(world.toolbox())
            await until_written(store, 30)
            assert store.healthy
    left = await partitions(postgres)
    assert read in left
    assert named(kept + 1) not in left

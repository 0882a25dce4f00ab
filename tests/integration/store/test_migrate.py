from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from support.record.rows import World, query, row_of, running, until_written
from toolbox_operator.store.connect import engine_for
from toolbox_operator.store.migrate import MIGRATION_LOCK, head, migrate
from toolbox_operator.store.schema import GENERIC_CATALOG_ID, SCHEMA, metadata

pytestmark = pytest.mark.integration


@asynccontextmanager
async def opened(dsn: str) -> AsyncGenerator[AsyncConnection]:
    """A transaction of its own."""
    engine = engine_for(dsn, 5)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def migrated(dsn: str, **options: float) -> str:
    async with opened(dsn) as connection:
        return await migrate(connection, **options)


def differences(connection: Connection) -> list[Any]:
    """What Alembic would change to make the database like the tables in `schema`."""

    def ours(_: object, name: str | None, kind: str, reflected: bool, __: object) -> bool:
        return not (kind == "table" and reflected and (name or "").startswith("agent_mcp_calls_2"))

    options = {
        "version_table_schema": SCHEMA,
        "include_schemas": True,
        "include_object": ours,
        "compare_type": True,
        "compare_server_default": True,
    }
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


async def test_migrations_make_exactly_the_tables_that_the_code_knows(postgres: str) -> None:
    assert await migrated(postgres) == head()
    # What is found without naming its schema looks to Alembic like a table in none.
    async with opened(f"{postgres}?options=-csearch_path%3Dpublic") as connection:
        assert await connection.run_sync(differences) == []


async def test_migrating_again_changes_nothing(postgres: str) -> None:
    assert await migrated(postgres) == await migrated(postgres) == head()
    rows = await query(postgres, "SELECT id::text, name FROM magic_toolbox.tool_catalog")
    assert rows == [{"id": GENERIC_CATALOG_ID, "name": "mcp-server-generic"}]


async def test_migrators_at_the_same_time_all_succeed(postgres: str) -> None:
    assert set(await asyncio.gather(*(migrated(postgres) for _ in range(4)))) == {head()}


async def test_a_migrator_that_cannot_get_the_lock_gives_up_in_time_and_changes_nothing(postgres: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as holder:
        await holder.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await migrated(postgres, lock_timeout=0.2)
    assert await query(postgres, "SELECT 1 FROM pg_namespace WHERE nspname = 'magic_toolbox'") == []
    assert await migrated(postgres) == head()


async def test_a_schema_newer_than_this_operator_is_left_alone_and_written_to(postgres: str) -> None:
    await migrated(postgres)
    await query(postgres, "UPDATE magic_toolbox.alembic_version SET version_num = 'from-the-future'")
    world = World()
    async with running(postgres) as store:
        store.submit(world.instance())
        await until_written(store)
    assert (await row_of(postgres, "account_tool_instances", world.instance_id))["status_on_toolbox"] == "active"
    assert await query(postgres, "SELECT version_num FROM magic_toolbox.alembic_version") == [
        {"version_num": "from-the-future"}
    ]


async def test_a_schema_made_by_an_administrator_is_used(postgres: str) -> None:
    await query(postgres, "CREATE SCHEMA magic_toolbox")
    assert await migrated(postgres) == head()


async def test_people_find_the_tables_without_naming_the_schema(postgres: str) -> None:
    await migrated(postgres)
    assert await query(postgres, "SELECT count(*) AS n FROM account_tool_instances") == [{"n": 0}]


async def test_the_writer_keeps_partitions_of_calls_ahead_and_each_takes_its_day(postgres: str) -> None:
    async with running(postgres) as store:
        store.submit(World().toolbox())
        await until_written(store)
    (today,) = [row["d"] for row in await query(postgres, "SELECT (now() AT TIME ZONE 'UTC')::date AS d")]
    call = """
        INSERT INTO magic_toolbox.agent_mcp_calls (id, created_at, connection_id, agent_id, instance_id, tool, outcome,
            duration_ms, bytes_in, bytes_out)
        SELECT id, %(at)s, id, id, id, 'now', 'ok', 1, 1, 1 FROM gen_random_uuid() AS id
        RETURNING tableoid::regclass::text AS partition
    """
    for day in (today - timedelta(days=1), today, today + timedelta(days=7)):
        (row,) = await query(postgres, call, {"at": f"{day}T23:59:59.999999+00"})
        assert row["partition"].endswith(f"agent_mcp_calls_{day:%Y%m%d}")
    with pytest.raises(psycopg.errors.CheckViolation):
        await query(postgres, call, {"at": f"{today + timedelta(days=40)}T00:00:00+00"})


async def test_partitions_are_made_once_whatever_is_asked(postgres: str) -> None:
    await migrated(postgres)
    ask = text("SELECT magic_toolbox.ensure_call_partitions(:first, :last)")
    async with opened(postgres) as connection:
        days = {"first": date(2026, 2, 27), "last": date(2026, 3, 2)}
        assert await connection.scalar(ask, days) == 4
        assert await connection.scalar(ask, {**days, "last": date(2026, 3, 3)}) == 1
    with pytest.raises(DBAPIError, match="refusing"):
        async with opened(postgres) as connection:
            await connection.scalar(ask, {"first": date(2020, 1, 1), "last": date(2026, 1, 1)})

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from localstack import postgres as postgres_module
from localstack.postgres import Postgres
from localstack.processes import Child, Supervisor
from localstack.progress import SetupError
from support.proxies.tcp_proxy import Proxy, proxy_to
from support.record.rows import CLUSTER, PATIENT, QUICK, Leader, World, query, row_of, running, until_written
from toolbox_operator.runtime import Fenced, SystemClock
from toolbox_operator.store.api import Live
from toolbox_operator.store.sql import Limits, SqlStore

pytestmark = pytest.mark.integration


@pytest.fixture
async def proxy(postgres: str) -> AsyncGenerator[Proxy]:
    parts = urlsplit(postgres)
    assert parts.hostname is not None and parts.port is not None
    async with proxy_to(parts.hostname, parts.port) as proxy:
        yield proxy


def through(proxy: Proxy, dsn: str) -> str:
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()


async def eventually(what: str, condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not {what} after {seconds:.0f}s"
        await asyncio.sleep(0.02)


def started_again(supervisor: Supervisor, server: Postgres) -> Child:
    """The killed server anew. It refuses to start while a process of the old one still goes."""
    end = time.monotonic() + 30
    while True:
        child = supervisor.start(server.child.command)
        try:
            child.wait_until(lambda: postgres_module.can_connect(server.admin_dsn()), 30, "accepting connections")
        except SetupError:
            if child.running() or time.monotonic() > end:
                child.stop()
                raise
        else:
            return child


async def test_rows_submitted_while_the_server_is_away_are_there_when_it_is_back(proxy: Proxy, postgres: str) -> None:
    world, later = World(), World("later")
    async with running(through(proxy, postgres)) as store:
        store.submit(world.instance(1, (1, 1)))
        await until_written(store)
        await proxy.close()
        store.submit(world.instance(2, (1, 2), status="stopped"))
        store.submit(later.instance())
        store.close(world.connection(), "deleted")
        await eventually("unhealthy", lambda: not store.healthy)
        assert not await store.flush(0.2)
        await proxy.open()
        await until_written(store)
        assert store.healthy
    row = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (row["spec_generation"], row["status_on_toolbox"]) == (2, "stopped")
    assert (await row_of(postgres, "account_tool_instances", later.instance_id))["deleted_at"] is None
    assert (await row_of(postgres, "agent_mcp_connections", world.connection_id))["delete_reason"] == "deleted"


async def test_a_process_that_starts_before_its_database_migrates_and_writes_later(proxy: Proxy, postgres: str) -> None:
    world = World()
    await proxy.close()
    async with running(through(proxy, postgres)) as store:
        store.submit(world.instance())
        await eventually("tried", lambda: not store.healthy)
        await proxy.open()
        await until_written(store)
    assert (await row_of(postgres, "account_tool_instances", world.instance_id))["deleted_at"] is None


async def test_a_commit_whose_outcome_is_unknown_is_done_again_without_harm(proxy: Proxy, postgres: str) -> None:
    world = World()
    async with running(through(proxy, postgres)) as store:
        store.submit(world.toolbox())
        await until_written(store)
        cuts: list[bytes] = []

        def commit(data: bytes) -> bool:
            if b"COMMIT" in data.upper():
                cuts.append(data)
            return bool(cuts)

        connections = proxy.accepted
        proxy.cut_when = commit
        store.submit(world.connection())
        await eventually("cut at the commit", lambda: bool(cuts))
        await until_written(store)
        cuts.clear()
        proxy.cut_when = commit
        store.log(object_kind="MCPServer", object_id=world.instance_id, type_="Normal", reason="Once", message="")
        await eventually("cut at the commit", lambda: bool(cuts))
        await until_written(store)
        assert proxy.accepted == connections + 2
    assert (await row_of(postgres, "agent_mcp_connections", world.connection_id))["connection_status"] == "connected"
    assert len(await query(postgres, "SELECT * FROM magic_toolbox.lifecycle_events")) == 1


async def test_a_server_that_hangs_is_given_up_at_the_deadline(proxy: Proxy, postgres: str) -> None:
    world = World()
    async with running(through(proxy, postgres), limits=QUICK) as store:
        store.submit(world.instance())
        await until_written(store)
        proxy.freeze()
        store.submit(world.instance(2))
        await eventually("given up", lambda: not store.healthy, 20)
        proxy.cut()
        proxy.thaw()
        await until_written(store)
    assert (await row_of(postgres, "account_tool_instances", world.instance_id))["spec_generation"] == 2


async def test_a_writer_ends_soon_also_while_the_server_hangs(proxy: Proxy, postgres: str) -> None:
    async with asyncio.timeout(None) as bound, running(through(proxy, postgres), limits=Limits()) as store:
        store.submit(World().instance())
        await until_written(store)
        proxy.freeze()
        bound.reschedule(asyncio.get_running_loop().time() + 10)
        store.submit(World().instance())
        assert not await store.flush(0.2)


async def test_connections_ended_by_an_administrator_lose_nothing(postgres: str) -> None:
    worlds = [World(f"ns-{i}") for i in range(30)]
    end = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'magic-toolbox-operator' AND datname = current_database()
    """
    async with running(postgres) as store:
        for world in worlds:
            store.submit(world.connection())
            await query(postgres, end)
        await until_written(store)
    rows = await query(postgres, "SELECT id FROM magic_toolbox.agent_mcp_connections WHERE deleted_at IS NULL")
    assert {str(row["id"]) for row in rows} == {world.connection_id for world in worlds}


async def test_rows_catch_up_when_the_server_was_stopped_and_started_again(
    supervisor: Supervisor, state_folder: Path, tmp_path: Path
) -> None:
    server = await asyncio.to_thread(postgres_module.start, supervisor, state_folder / f"pg-{tmp_path.name}")
    child = server.child
    try:
        world = World()
        async with running(server.dsn()) as store:
            store.submit(world.instance(1, (1, 1)))
            await until_written(store)
            await asyncio.to_thread(child.kill)
            store.submit(world.instance(2, (1, 2)))
            store.submit(world.connection(instance=world.instance(2, (1, 2))))
            await eventually("unhealthy", lambda: not store.healthy)
            child = await asyncio.to_thread(started_again, supervisor, server)
            await until_written(store, 30)
        row = await row_of(server.dsn(), "account_tool_instances", world.instance_id)
        assert (row["spec_generation"], row["observed_seq"]) == (2, 2)
        assert (await row_of(server.dsn(), "agent_mcp_connections", world.connection_id))["deleted_at"] is None
    finally:
        await asyncio.to_thread(child.stop)


async def test_a_database_that_lost_its_rows_gets_them_again(proxy: Proxy, postgres: str) -> None:
    world = World()
    async with running(through(proxy, postgres)) as store:
        store.submit(world.connection())
        await until_written(store)
        await proxy.close()
        await query(postgres, "DROP SCHEMA magic_toolbox CASCADE")  # as if restored from before its first row
        store.submit(world.toolbox(2))
        await proxy.open()
        await until_written(store)
    assert (await row_of(postgres, "agent_mcp_connections", world.connection_id))["deleted_at"] is None
    assert (await row_of(postgres, "account_tool_environments", world.toolbox_id))["spec_generation"] == 2


async def test_a_lock_held_by_somebody_else_delays_only_the_record(postgres: str) -> None:
    world = World()
    async with running(postgres, limits=QUICK) as store:
        store.submit(world.instance())
        await until_written(store)
        async with await psycopg.AsyncConnection.connect(postgres) as holder:
            await holder.execute("SELECT * FROM magic_toolbox.account_tool_instances FOR UPDATE")
            store.submit(world.instance(2))
            await eventually("unhealthy", lambda: not store.healthy)
        await until_written(store)
    assert (await row_of(postgres, "account_tool_instances", world.instance_id))["spec_generation"] == 2


async def test_two_leaders_at_once_end_in_the_rows_of_the_later_one(postgres: str) -> None:
    worlds = [World(f"ns-{i}") for i in range(20)]
    async with running(postgres, Leader(epoch=1)) as old, running(postgres, Leader(epoch=2)) as new:
        for world in worlds:
            old.submit(world.connection(instance=world.instance(9, (9, 9), image="old")))
            new.submit(world.connection(instance=world.instance(1, (1, 1), image="new")))
            old.submit(world.instance(9, (9, 9), image="old"))
            new.submit(world.instance(1, (1, 1), image="new"))
            await asyncio.sleep(0)
        await until_written(old)
        await until_written(new)
        for world in worlds:
            old.submit(world.instance(10, (10, 10), image="old"))
        await until_written(old)
    rows = await query(postgres, "SELECT DISTINCT epoch FROM magic_toolbox.account_tool_instances")
    assert rows == [{"epoch": 2}]


async def test_a_process_that_no_longer_leads_writes_nothing_and_stops(postgres: str) -> None:
    world, leader = World(), Leader()
    store = SqlStore(postgres, CLUSTER, leader, SystemClock(), limits=PATIENT)
    writer = asyncio.create_task(store.run())
    try:
        store.submit(world.instance())
        await until_written(store)
        leader.lost = True
        store.submit(world.instance(2))
        store.sweep(Live(frozenset(), frozenset(), frozenset()))
        with pytest.raises(Fenced):
            async with asyncio.timeout(10):
                await asyncio.shield(writer)
    finally:
        writer.cancel()
        with suppress(Fenced, asyncio.CancelledError):
            await writer
    row = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (row["spec_generation"], row["deleted_at"]) == (1, None)


async def test_events_beyond_the_bound_are_dropped_oldest_first_and_counted(proxy: Proxy, postgres: str) -> None:
    await proxy.close()
    world = World()
    async with running(through(proxy, postgres)) as store:
        for i in range(PATIENT.events + 3):
            store.log(object_kind="Toolbox", object_id=world.toolbox_id, type_="Normal", reason=f"R{i}", message="")
        assert store.backlog == PATIENT.events
        await proxy.open()
        await until_written(store)
    rows = await query(postgres, "SELECT reason FROM magic_toolbox.lifecycle_events ORDER BY reason")
    assert [row["reason"] for row in rows] == [f"R{i}" for i in range(3, PATIENT.events + 3)]

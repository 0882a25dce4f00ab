"""The database behind a running operator: taken away, copied, replaced and read past the operator."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from support.poll import until
from support.proxies.background_proxy import BackgroundProxy
from support.system import rig
from support.system.space import Space
from support.system.world import World


@dataclass(frozen=True, slots=True)
class RecordDatabase:
    """The operator's database, as its administrator sees it."""

    world: World
    proxy: BackgroundProxy

    @property
    def database(self) -> str:
        """Its name."""
        return urlsplit(str(self.world.stack.operator.database_url)).path.lstrip("/")

    def run(self, *statements: str, database: str = "postgres") -> None:
        """As the superuser, past the proxy, each statement on its own."""
        dsn = self.world.stack.parts.postgres.admin_dsn(database)
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            for statement in statements:
                connection.execute(sql.SQL(statement))  # pyright: ignore[reportArgumentType] -- of names made here

    def inside(self, *statements: str) -> None:
        """As the superuser in the record's database."""
        self.run(*statements, database=self.database)

    @contextmanager
    def away(self) -> Generator[None]:
        """The database cannot be reached, and nobody is connected to it."""
        self.proxy.away()
        try:
            self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.database}'")  # noqa: S608 -- a name of ours
            yield
        finally:
            self.proxy.back()

    def copy(self, name: str) -> None:
        """A copy of the database as it is now; for the time while it is away."""
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{self.database}" OWNER magic_toolbox')

    def put_in_place(self, name: str, *, old: str) -> None:
        """Another database takes the record's place; what was there is called `old` from now on."""
        self.run(
            f'ALTER DATABASE "{self.database}" RENAME TO "{old}"',
            f'ALTER DATABASE "{name}" RENAME TO "{self.database}"',
        )

    def rows(self, space: Space) -> dict[str, str]:
        """The status of each of a namespace's objects by name; of a closed row why it was closed.

        As the superuser, past the proxy.
        """
        tables = (("account_tool_instances", "status_on_toolbox"), ("agent_mcp_connections", "connection_status"))
        selects = [
            f"SELECT name, coalesce('closed: ' || delete_reason, {status}) FROM {table}"  # noqa: S608 -- names of ours
            f" WHERE namespace = '{space.namespace}'"
            for table, status in tables
        ]
        dsn = self.world.stack.parts.postgres.admin_dsn(self.database)
        return dict(self.world.rows(" UNION ALL ".join(selects), dsn=dsn))

    def await_behind(self) -> None:
        """The operator says of itself that the record is behind, and leads on."""
        world = self.world
        until("behind", lambda: rig.metric(world, "magic_toolbox_record_up"), lambda up: up == 0.0)
        assert rig.metric(world, "magic_toolbox_record_backlog") > 0
        assert rig.metric(world, "magic_toolbox_leader") == 1.0
        assert rig.is_ready(world)

    def await_caught_up(self) -> None:
        """Nothing waits any more."""
        world = self.world
        until("up", lambda: rig.metric(world, "magic_toolbox_record_up"), lambda up: up == 1.0, seconds=60)
        until("written", lambda: rig.metric(world, "magic_toolbox_record_backlog"), lambda left: left == 0.0)
        assert rig.metric(world, "magic_toolbox_record_refused") == 0.0

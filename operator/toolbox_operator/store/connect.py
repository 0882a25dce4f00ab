"""The one connection to PostgreSQL that the writer uses."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

SESSION: dict[str, str | int] = {
    "application_name": "magic-toolbox-operator",
    # After a failover the old primary may still answer, read-only: go on to the next address instead.
    "target_session_attrs": "read-write",
    # A server that went away without a word is noticed by the kernel, not after hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}


def engine_for(dsn: str, connect_timeout: float) -> AsyncEngine:
    """An engine with a single connection; `dsn` is anything libpq understands, and its own settings win."""
    given = conninfo_to_dict(dsn)
    session = {name: value for name, value in SESSION.items() if name not in given}
    if "connect_timeout" not in given:
        session["connect_timeout"] = max(2, round(connect_timeout))
    conninfo = make_conninfo(dsn, **session)

    async def connect() -> psycopg.AsyncConnection:
        # No server-side prepared statements: a pooler in between may give every transaction another server.
        return await psycopg.AsyncConnection.connect(conninfo, prepare_threshold=None)

    return create_async_engine(
        "postgresql+psycopg://", async_creator=connect, pool_size=1, max_overflow=0, pool_timeout=connect_timeout
    )

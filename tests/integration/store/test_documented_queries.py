from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.reconcilers.memory_calls import call
from support.record.rows import World, query, running, until_written

pytestmark = pytest.mark.integration

QUERIES = dict(
    re.findall(
        r"^```sql (\w+)\n(.*?)^```$",
        (Path(__file__).parents[3] / "docs" / "record.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


async def test_every_query_of_the_documentation_answers_what_it_promises(postgres: str) -> None:
    world, other = World(), World()
    instance = world.instance(1, (1, 1), tools=["now"])
    gone = dataclasses.replace(other.connection(instance=instance, agent="old-bot"), name="gone")
    async with running(postgres) as store:
        store.submit(world.connection(instance=instance))
        store.submit(gone)
        await until_written(store)
        store.close(gone, "deleted")
        store.log(object_kind="MCPServer", object_id=instance.id, type_="Normal", reason="Ready", message="m")
        await until_written(store)
        at = datetime.now(UTC)
        calls = [call(world.connection_id, at, instance=instance.id, namespace="team-a") for _ in range(2)]
        assert await store.keep_calls(calls, {}) is not None
        for table in ("agent_mcp_connections", "agent_mcp_usage"):
            column = {"agent_mcp_connections": "created_at", "agent_mcp_usage": "last_used_at"}[table]
            statement = f"UPDATE magic_toolbox.{table} SET {column} = now() - interval '31 days'"  # noqa: S608 -- constants
            await query(postgres, statement)
    answers: dict[str, list[dict[str, Any]]] = {name: await query(postgres, sql) for name, sql in QUERIES.items()}
    for rows in answers.values():
        for row in rows:
            row.pop("deleted_at", None)
            row.pop("created_at", None)
            row.pop("last_used_at", None)
    assert answers == {
        "deployed": [
            {
                "toolbox": "tbx-1",
                "namespace": "mcp-system",
                "server": "time",
                "status": "active",
                "image": "time:1",
            }
        ],
        "connected": [
            {
                "namespace": "team-a",
                "agent": "research-bot",
                "server": "mcp-system/time",
                "toolbox": "tbx-1",
                "status": "connected",
            }
        ],
        "affected": [{"toolbox": "tbx-1", "servers": 1, "agents": 1}],
        "offering": [{"namespace": "mcp-system", "server": "time", "description": ""}],
        "closed": [{"namespace": "team-a", "agent": "old-bot", "server": "time", "reason": "deleted"}],
        "called": [
            {
                "namespace": "team-a",
                "agent": "research-bot",
                "server": "time",
                "tool": "get_time",
                "outcome": "ok",
                "calls": 2,
                "slowest_ms": 12,
            }
        ],
        "unused": [{"namespace": "team-a", "connection": "bot-mcp-system", "agent": "research-bot"}],
        "history": [{"type": "Normal", "reason": "Ready", "message": "m"}],
    }

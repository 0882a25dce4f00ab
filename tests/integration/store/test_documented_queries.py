from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

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
    answers: dict[str, list[dict[str, Any]]] = {name: await query(postgres, sql) for name, sql in QUERIES.items()}
    for rows in answers.values():
        for row in rows:
            row.pop("deleted_at", None)
            row.pop("created_at", None)
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
        "history": [{"type": "Normal", "reason": "Ready", "message": "m"}],
    }

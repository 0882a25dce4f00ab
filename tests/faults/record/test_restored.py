"""The database becomes another one: older, empty, or somebody else's. The cluster and the hosts are the truth."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import pytest

from localstack.quickstart import Target
from support.poll import until
from support.system import rig
from support.system.record_database import RecordDatabase
from support.system.space import Space

pytestmark = pytest.mark.faults


FOREIGN = (
    "TRUNCATE magic_toolbox.account_tool_environments, magic_toolbox.agents, magic_toolbox.lifecycle_events CASCADE",
    "INSERT INTO magic_toolbox.account_tool_environments (id, cluster_id, namespace, name, epoch, endpoint,"
    " gateway_url, status)"
    " VALUES (gen_random_uuid(), gen_random_uuid(), 'mcp-system', 'tbx-1', 9000, '', '', 'theirs')",
)
"""Makes a copy into the database of another cluster, which has a Toolbox of the same name."""


@dataclass(frozen=True, slots=True)
class Before:
    """What must not change because of the record."""

    server: Target
    connection: Target
    container: str
    version: str
    grant: str


@pytest.fixture
def before(space: Space) -> Generator[Before]:
    """One server and one connection, left alone by whatever becomes of the record."""
    world = space.world
    server, connection = space.server("kept"), space.connection("bot", "kept")
    rig.ready(space, server, connection)
    # The last that its status learns.
    world.await_status(server, connections=1)

    def look() -> Before:
        body = world.find(server)
        assert body is not None
        version = body["metadata"]["resourceVersion"]
        uid = world.status(connection)["connectionId"]
        (grant,) = [name for name in world.grants_of(space.namespace) if name == f"{uid}.json"]
        return Before(server, connection, rig.container(world, server), version, grant)

    found = look()
    yield found
    assert look() == found, "nothing in Kubernetes or on the host follows from the record"
    assert world.refusal(space.secret("bot"), "echo", {}) is None


def test_a_database_restored_to_an_older_state_is_brought_up_to_date(
    space: Space, record: RecordDatabase, before: Before, spare: str
) -> None:
    world = space.world
    changed, removed = space.server("changed"), space.server("removed")
    gone = space.connection("gone", "removed")
    rig.ready(space, changed, removed, gone)
    wanted = dict.fromkeys(("kept", "changed", "removed"), "active")
    wanted |= dict.fromkeys(("bot", "gone"), "connected")
    until("written", lambda: record.rows(space), wanted.__eq__)
    with record.away():
        record.copy(spare)
    space.delete(gone)
    space.delete(removed)
    world.patch(changed, {"spec": {"state": "Stopped"}})
    world.await_status(changed, phase="Stopped")
    created = space.server("created")
    rig.ready(space, created)
    until("written", lambda: record.rows(space).get("created"), lambda row: row == "active")

    with record.away():
        record.put_in_place(spare, old=f"{spare}_newer")
    try:
        now = {
            "kept": "active",
            "bot": "connected",
            "changed": "stopped",
            "created": "active",
            "removed": "closed: deleted",
            "gone": "closed: deleted",
        }
        space.server("after")  # so that there is something to write
        now["after"] = "active"
        until("as the world is", lambda: record.rows(space), now.__eq__, seconds=60)
    finally:
        record.run(f'DROP DATABASE "{spare}_newer" WITH (FORCE)')
    for name in ("changed", "created", "after"):
        space.delete(Target("MCPServer", space.namespace, name))


def test_a_database_emptied_under_the_operator_is_filled_again(
    space: Space, record: RecordDatabase, before: Before
) -> None:
    record.inside("DROP SCHEMA magic_toolbox CASCADE")
    extra = space.server("extra")
    rig.ready(space, extra)
    now = {"kept": "active", "bot": "connected", "extra": "active"}

    def filled() -> bool:
        exists = record.world.rows("SELECT to_regclass('magic_toolbox.agent_mcp_connections') IS NOT NULL")
        if exists != [(True,)]:
            return False
        # Closed rows of late are history that the operator still had.
        return {name: row for name, row in record.rows(space).items() if not row.startswith("closed")} == now

    until("filled", filled, seconds=60)
    space.delete(extra)


def test_two_databases_swapped_and_swapped_back_end_in_the_truth(
    space: Space, record: RecordDatabase, before: Before, spare: str
) -> None:
    world = space.world
    moved = space.server("moved")
    rig.ready(space, moved)
    until("written", lambda: record.rows(space).get("moved"), lambda row: row == "active")
    with record.away():
        record.copy(spare)
        record.run(*FOREIGN, database=spare)
        record.put_in_place(spare, old=f"{spare}_own")
    try:
        world.patch(moved, {"spec": {"state": "Stopped"}})
        world.await_status(moved, phase="Stopped")
        until("there", lambda: record.rows(space).get("moved"), lambda row: row == "stopped", seconds=60)
        foreign = "SELECT status, deleted_at FROM account_tool_environments WHERE name = 'tbx-1' AND status = 'theirs'"
        assert world.rows(foreign) == [("theirs", None)], "another cluster's rows are not ours to close"
    finally:
        with record.away():
            record.put_in_place(f"{spare}_own", old=spare)
            assert record.rows(space)["moved"] == "active", "as it was left"
    space.delete(moved)
    until("the truth", lambda: record.rows(space).get("moved"), lambda row: row == "closed: deleted", seconds=60)

"""PostgreSQL is away, or takes nothing: everything else goes on, and the record catches up."""

from __future__ import annotations

import threading

import pytest

from support.poll import until
from support.system import rig
from support.system.record_database import RecordDatabase
from support.system.space import Space

pytestmark = pytest.mark.faults

ABANDON = '{"metadata":{"annotations":{"magictoolbox.dev/abandon":"true"}}}'


def test_deploying_revoking_and_deleting_need_no_record_and_rows_catch_up(space: Space, record: RecordDatabase) -> None:
    world = space.world
    kept, removed, left = (space.server(name) for name in ("kept", "removed", "left"))
    bot, closed = space.connection("bot", "kept"), space.connection("closed", "kept")
    gone = space.connection("gone", "removed")
    rig.ready(space, kept, removed, left, bot, closed, gone)
    shut, before = space.secret("closed"), rig.container(world, kept)
    host = world.stack.host
    with record.away():
        created, late = space.server("created"), space.connection("late", "created")
        rig.ready(space, created, late)
        world.patch(closed, {"spec": {"active": False}})
        world.await_condition(closed, "Programmed", "True")
        assert world.refusal(shut, "echo", {}) is not None
        space.delete(gone)
        space.delete(removed)
        assert world.refusal(space.secret("late"), "echo", {}) is None
        assert rig.container(world, kept) == before
        # Left behind on purpose, which the record's history is to tell later.
        assert host.dtma is not None
        host.dtma.kill()
        space.kubectl("patch", left.resource, "--type=merge", "-p", ABANDON)
        space.delete(left)
        host.start_dtma()
        rig.ready(space, kept, created)
        record.await_behind()
    record.await_caught_up()
    assert record.rows(space) == {
        "kept": "active",
        "created": "active",
        "removed": "closed: deleted",
        "left": "closed: abandoned",
        "bot": "connected",
        "late": "connected",
        "closed": "disconnected",
        "gone": "closed: deleted",
    }
    history = world.rows(
        "SELECT e.reason FROM lifecycle_events e JOIN account_tool_instances i ON i.id = e.object"  # noqa: S608 -- a name of ours
        f" WHERE i.namespace = '{space.namespace}'"
    )
    assert history == [("Abandoned",)]


def test_a_commit_whose_answer_was_lost_is_made_good(space: Space, record: RecordDatabase) -> None:
    world, cut = space.world, threading.Event()
    server = space.server("unsure")
    rig.ready(space, server)
    record.await_caught_up()

    def commit(data: bytes) -> bool:
        if b"COMMIT" in data.upper():
            cut.set()
        return cut.is_set()

    record.proxy.cut_when(commit)
    world.patch(server, {"spec": {"state": "Stopped"}})
    assert cut.wait(timeout=30)
    world.await_status(server, phase="Stopped")
    until("written", lambda: record.rows(space)["unsure"], lambda row: row == "stopped")
    record.await_caught_up()


TAKES_NOTHING = {
    "read-only, as after a failover": (
        'ALTER DATABASE "{name}" SET default_transaction_read_only = on',
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'magic-toolbox-operator'"
        " AND datname = '{name}'",
    ),
    "its disk is full": (
        "CREATE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
        "CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON magic_toolbox.account_tool_instances"
        " EXECUTE FUNCTION public.full()",
    ),
}
TAKES_AGAIN = {
    "read-only, as after a failover": ('ALTER DATABASE "{name}" RESET default_transaction_read_only',),
    "its disk is full": (
        "DROP TRIGGER full_disk ON magic_toolbox.account_tool_instances",
        "DROP FUNCTION public.full()",
    ),
}


@pytest.mark.parametrize("cause", TAKES_NOTHING)
def test_a_database_that_takes_nothing_for_a_while_holds_up_nothing_else(
    space: Space, record: RecordDatabase, cause: str
) -> None:
    world, name = space.world, f"while-{len(cause)}"
    record.inside(*(statement.format(name=record.database) for statement in TAKES_NOTHING[cause]))
    try:
        server = space.server(name)
        rig.ready(space, server)
        record.await_behind()
    finally:
        # A new session of an administrator is read-only as well, until it says otherwise.
        record.run(
            "SET default_transaction_read_only = off",
            *(s.format(name=record.database) for s in TAKES_AGAIN[cause] if s.startswith("ALTER DATABASE")),
        )
        record.inside(*(s for s in TAKES_AGAIN[cause] if not s.startswith("ALTER DATABASE")))
    record.await_caught_up()
    assert record.rows(space)[name] == "active"
    assert world.condition(server, "Ready")["status"] == "True"


def test_an_operator_that_starts_without_its_database_works_and_migrates_later(
    space: Space, record: RecordDatabase
) -> None:
    operator = space.world.stack.operator
    early = space.server("early")
    rig.ready(space, early)
    record.await_caught_up()
    assert operator.child is not None
    operator.child.stop()
    with record.away():
        record.inside("DROP SCHEMA magic_toolbox CASCADE")  # nothing is left, as in a new database
        operator.start()
        late = space.server("at-start")
        rig.ready(space, early, late)
        record.await_behind()
    record.await_caught_up()
    assert record.rows(space)["early"] == "active"
    assert record.rows(space)["at-start"] == "active"

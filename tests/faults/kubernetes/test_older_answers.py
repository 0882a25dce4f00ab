"""An API server that lags: older lists and older objects remove nothing newer and revoke nothing."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import psycopg
import pytest

from localstack.quickstart import Target
from support.kubernetes.api import GROUP_ROOT, PLURALS
from support.poll import until
from support.proxies.faults import GONE, Answer, Fault
from support.system.arena import Arena, Watched, interrupt, on
from support.system.space import Space

pytestmark = pytest.mark.faults


def replay_lists(arena: Arena, operator: Watched) -> dict[str, Fault]:
    """From now on every list of our kinds is what it is at this moment."""
    return {
        plural: operator.proxy.fault(on(plural, "list"), Answer(arena.api.raw("GET", f"{GROUP_ROOT}/{plural}")))
        for plural in PLURALS.values()
    }


CLOSINGS = """
CREATE TABLE IF NOT EXISTS magic_toolbox.closings (namespace text, name text, reason text);
CREATE OR REPLACE FUNCTION magic_toolbox.note_closing() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN INSERT INTO magic_toolbox.closings VALUES (NEW.namespace, NEW.name, NEW.delete_reason); RETURN NEW; END';
CREATE OR REPLACE TRIGGER note_closing AFTER UPDATE ON magic_toolbox.{table} FOR EACH ROW
    WHEN (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL) EXECUTE FUNCTION magic_toolbox.note_closing();
"""
"""Notes each closing of a row, also of one that is opened again at once."""
TABLES = ("account_tool_instances", "agent_mcp_connections")


@pytest.fixture(autouse=True)
def closings_noted(arena: Arena, operator: Watched) -> None:
    """From here on the record tells which rows were ever closed."""
    del operator  # it makes the tables
    until("tables", lambda: tables(arena), lambda found: set(TABLES) <= found)
    with psycopg.connect(arena.dsn, autocommit=True) as connection:
        for table in TABLES:
            connection.execute(CLOSINGS.format(table=table).encode())


def tables(arena: Arena) -> set[str]:
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'magic_toolbox'"
    return {str(name) for (name,) in arena.world.rows(query)}


def closings(arena: Arena, space: Space) -> list[tuple[Any, ...]]:
    """Every row of the namespace that was closed, also if it was opened again."""
    query = f"SELECT name, reason FROM closings WHERE namespace = '{space.namespace}'"  # noqa: S608 - a name of our own
    return arena.world.rows(query)


def facts(space: Space, server: Target) -> tuple[object, ...]:
    """What must not change: the container, the grants word for word, the Secret."""
    world = space.world
    folder = world.stack.host.state_dir / "grants"
    grants = {name: json.loads((folder / name).read_text())["grant"] for name in world.grants_of(space.namespace)}
    return world.status(server)["container"]["id"], grants, space.secret("bot")


def settled(space: Space, connection: Target) -> bool:
    """Whether its grant names the Secret's token, and an end for every other."""
    credentials = space.world.grant(connection)["credentials"]
    token = hashlib.sha256(space.secret("bot")["token"].encode()).hexdigest()
    return [each["value"] for each in credentials if each["notAfter"] is None] == [token]


def test_older_lists_take_nothing_away_and_do_nothing_twice(arena: Arena, operator: Watched, space: Space) -> None:
    space.server("older")
    lists = replay_lists(arena, operator)
    server = space.server("newer")
    connection = space.connection("bot", "newer")
    space.world.await_condition(connection, "Ready", "True")
    before = facts(space, server)
    seen = {plural: fault.hits for plural, fault in lists.items()}
    # Resyncs, and watches that start over, from the old lists.
    interrupt(operator.proxy, GONE)
    for plural, fault in lists.items():
        until(f"older lists of {plural}", lambda f=fault, p=plural: f.hits - seen[p], lambda more: more >= 3)
    assert closings(arena, space) == []
    operator.proxy.clear()
    later = space.connection("later", "newer")
    space.world.await_condition(later, "Ready", "True")
    assert len(space.world.containers_of(space.namespace)) == 2
    space.delete(later)
    assert facts(space, server) == before
    until("closed", lambda: closings(arena, space), lambda found: found == [("later", "deleted")])


def test_an_operator_that_starts_on_older_lists_takes_nothing_away(
    arena: Arena, operator: Watched, space: Space
) -> None:
    lists = replay_lists(arena, operator)
    server = space.server("newer")
    connection = space.connection("bot", "newer")
    space.world.await_condition(connection, "Ready", "True")
    before = facts(space, server)
    operator.replica.kill()
    seen = {plural: fault.hits for plural, fault in lists.items()}
    operator.replica.await_leading()
    for plural, fault in lists.items():
        until(f"older lists of {plural}", lambda f=fault, p=plural: f.hits - seen[p], lambda more: more >= 4)
    assert facts(space, server) == before
    # A new process cannot know that its first list is behind: it closes rows, and opens them again as soon as the
    # watches show their objects.
    until("rows open", lambda: space.world.open_rows(space.namespace), lambda rows: len(rows) == 2)
    assert {reason for _, reason in closings(arena, space)} <= {"swept"}
    operator.proxy.clear()
    space.world.await_condition(connection, "Ready", "True")
    assert facts(space, server) == before
    assert len(space.world.open_rows(space.namespace)) == 2


@pytest.mark.parametrize("renewal", ["rotated", "deleted"])
def test_an_older_secret_revokes_no_newer_token(arena: Arena, operator: Watched, space: Space, renewal: str) -> None:
    server = space.server("quiet")
    connection = space.connection("bot", "quiet")
    space.world.await_condition(connection, "Ready", "True")
    path = f"/api/v1/namespaces/{space.namespace}/secrets/bot-mcp"
    older = arena.api.raw("GET", path)
    if renewal == "rotated":
        space.world.patch(connection, {"metadata": {"annotations": {"magictoolbox.dev/rotate": "now"}}})
    else:
        arena.api.request("DELETE", path)

    def renewed() -> bool:
        data = (arena.api.find(path) or {}).get("data", {})
        return "token" in data and "token-next" not in data and data["token"] != json.loads(older)["data"]["token"]

    until("another token", renewed)
    space.world.await_condition(connection, "Ready", "True")
    until("accepted", lambda: space.world.refusal(space.secret("bot"), "echo", {}), lambda refusal: refusal is None)
    until("no other token without an end", lambda: settled(space, connection))
    before = facts(space, server)
    fault = operator.proxy.fault(on("secrets", "get", name="bot-mcp"), Answer(older))
    until("asked for the Secret", lambda: fault.hits, lambda hits: hits >= 2)
    assert facts(space, server) == before
    assert space.world.refusal(space.secret("bot"), "echo", {}) is None
    operator.proxy.clear()
    space.world.await_condition(connection, "Ready", "True")
    assert facts(space, server) == before


def test_an_older_body_of_a_server_in_a_relist_brings_back_no_older_spec(
    arena: Arena, operator: Watched, space: Space
) -> None:
    server = space.server("edited")
    space.world.await_condition(server, "Ready", "True")
    lists = replay_lists(arena, operator)
    space.server("edited", env=[{"name": "VERSION", "value": "2"}])
    space.world.await_condition(server, "Ready", "True")
    until("2", lambda: space.world.status(server)["serverInfo"]["version"], lambda version: version == "2")
    container = space.world.status(server)["container"]["id"]
    interrupt(operator.proxy, GONE)
    seen = lists["mcpservers"].hits
    until("older lists", lambda: lists["mcpservers"].hits - seen, lambda more: more >= 3)
    assert space.world.containers_of(space.namespace) == [container]
    assert space.world.status(server)["serverInfo"]["version"] == "2"

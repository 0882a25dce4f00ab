"""Connections that cannot be, Secrets in the wrong hands, and what stays refused all along."""

from __future__ import annotations

import base64
import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from localstack.kubernetes import Manifest
from localstack.quickstart import Target
from support.poll import until
from support.system.space import Space

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("good_server")]

ECHO: dict[str, Any] = {"said": "hello"}


def grant_of(space: Space, connection: Target) -> dict[str, Any] | None:
    """What the host keeps on its disk about a connection."""
    uid = space.world.status(connection)["connectionId"]
    path = space.world.stack.host.state_dir / "grants" / f"{uid}.json"
    return json.loads(path.read_text())["grant"] if path.exists() else None


def connected(space: Space, name: str, **spec: Any) -> tuple[Target, dict[str, str]]:
    """A connection to the good server that works, and its Secret."""
    connection = space.connection(name, "good", **spec)
    space.world.await_condition(connection, "Ready", "True")
    secret = space.secret(name)
    assert space.world.refusal(secret, "echo", ECHO) is None
    return connection, secret


def later(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def object_named(space: Space, kind: str, name: str) -> Manifest:
    return space.world.stack.parts.cluster.get(kind, name, "-n", space.namespace)


def test_a_connection_to_a_server_that_does_not_exist_waits_for_it(space: Space) -> None:
    world = space.world
    connection = space.connection("early", "late-server")
    resolved = world.await_condition(connection, "ResolvedRefs", "False", "ServerNotFound")
    assert f"{space.namespace}/late-server does not exist: create it" in resolved["message"]
    assert "late-server" in world.await_event(connection, "ServerNotFound")
    assert world.status(connection)["phase"] == "Pending"
    assert world.secret(space.namespace, "early-mcp") is None, "nothing to connect to, so no token"
    space.server("late-server")
    world.await_condition(connection, "Ready", "True")
    assert world.refusal(space.secret("early"), "echo", ECHO) is None


def test_a_switched_off_connection_is_disconnected_whether_its_server_exists_or_not(space: Space) -> None:
    connection = space.connection("idle", "never-made", active=False)
    status = space.world.await_status(connection, phase="Disconnected")
    assert {c["type"]: c["reason"] for c in status["conditions"]}["ResolvedRefs"] == "ServerNotFound"


def test_a_server_that_is_not_shared_refuses_other_namespaces_until_it_is(space: Space, elsewhere: Space) -> None:
    world = space.world
    server = space.server("private")
    there = {"name": "private", "namespace": space.namespace}
    connection = elsewhere.connection("outsider", "private", serverRef=there)
    accepted = world.await_condition(connection, "Accepted", "False", "NotPermitted")
    assert "sharing.namespaces.from to All" in accepted["message"]
    assert "sharing" in world.await_event(connection, "NotPermitted")
    assert world.status(connection)["phase"] == "Denied"
    assert world.secret(elsewhere.namespace, "outsider-mcp") is None
    world.await_condition(server, "Ready", "True")
    world.patch(server, {"spec": {"sharing": {"namespaces": {"from": "All"}}}})
    world.await_condition(connection, "Ready", "True")
    secret = elsewhere.secret("outsider")
    assert world.refusal(secret, "echo", ECHO) is None
    world.patch(server, {"spec": {"sharing": {"namespaces": {"from": "Same"}}}})
    world.await_condition(connection, "Accepted", "False", "NotPermitted")
    world.await_condition(connection, "Programmed", "True")
    assert "bearer token" in (world.refusal(secret, "echo", ECHO) or "")


def test_a_foreign_secret_in_the_way_is_never_touched_and_its_removal_is_all_it_takes(space: Space) -> None:
    world = space.world
    space.kubectl("create", "secret", "generic", "blocked-mcp", "--from-literal=password=theirs")
    before = object_named(space, "secret", "blocked-mcp")
    connection = space.connection("blocked", "good")
    accepted = world.await_condition(connection, "Accepted", "False", "SecretConflict")
    assert "The Secret blocked-mcp exists" in accepted["message"] and "delete it" in accepted["message"]
    assert "blocked-mcp" in world.await_event(connection, "SecretConflict")
    assert world.status(connection)["phase"] == "Denied"
    assert grant_of(space, connection) is None
    assert object_named(space, "secret", "blocked-mcp") == before
    space.kubectl("delete", "secret", "blocked-mcp")
    world.await_condition(connection, "Ready", "True")
    assert world.refusal(space.secret("blocked"), "echo", ECHO) is None


def test_a_deleted_secret_is_made_again_and_the_old_token_is_refused(space: Space) -> None:
    world = space.world
    connection, old = connected(space, "robbed")
    space.kubectl("delete", "secret", "robbed-mcp")
    new = until("made again", lambda: world.secret(space.namespace, "robbed-mcp") or {})
    assert new["token"] != old["token"]
    until("refused", lambda: world.refusal(old, "echo", ECHO))
    world.await_condition(connection, "Ready", "True")
    assert world.refusal(new, "echo", ECHO) is None


@pytest.mark.parametrize("written", ["", "no token of ours", "mtb_" + "A" * 42 + "é"], ids=["empty", "weak", "odd"])
def test_a_token_that_is_no_token_is_replaced_and_the_old_one_refused(space: Space, written: str) -> None:
    world, name = space.world, f"edited-{secrets.token_hex(3)}"
    connection, old = connected(space, name)
    encoded = base64.b64encode(written.encode()).decode()
    space.kubectl("patch", "secret", f"{name}-mcp", "-p", json.dumps({"data": {"token": encoded}}))
    new = until("replaced", lambda: space.secret(name), lambda secret: secret["token"] not in (written, old["token"]))
    until("refused", lambda: world.refusal(old, "echo", ECHO))
    world.await_condition(connection, "Ready", "True")
    assert world.refusal(new, "echo", ECHO) is None
    assert new["token"] in new["mcp.json"]


def test_a_token_of_the_right_form_put_in_by_hand_is_the_token_from_then_on(space: Space) -> None:
    world = space.world
    connection, old = connected(space, "chosen")
    chosen = "mtb_" + secrets.token_urlsafe(32)
    encoded = base64.b64encode(chosen.encode()).decode()
    space.kubectl("patch", "secret", "chosen-mcp", "-p", json.dumps({"data": {"token": encoded}}))
    until("the old one refused", lambda: world.refusal(old, "echo", ECHO))
    world.await_condition(connection, "Ready", "True")
    now = until("told", lambda: space.secret("chosen"), lambda secret: chosen in secret["mcp.json"])
    assert now["token"] == chosen
    assert world.refusal(now, "echo", ECHO) is None


def test_a_connection_that_has_expired_never_opens_until_its_time_is_moved(space: Space) -> None:
    world = space.world
    connection = space.connection("stale", "good", expiresAt="2020-01-01T00:00:00Z")
    ready = world.await_condition(connection, "Ready", "False", "Expired")
    assert "2020-01-01" in ready["message"] and "set a later expiresAt" in ready["message"]
    world.await_event(connection, "Expired", type_="Normal")
    assert world.status(connection)["phase"] == "Expired"
    assert grant_of(space, connection) is None
    world.patch(connection, {"spec": {"expiresAt": later(86400)}})
    world.await_condition(connection, "Ready", "True")
    assert world.refusal(space.secret("stale"), "echo", ECHO) is None


def test_a_connection_that_expires_while_it_is_in_use_is_refused_from_that_moment(space: Space) -> None:
    world = space.world
    connection, secret = connected(space, "brief")
    world.patch(connection, {"spec": {"expiresAt": later(4)}})
    until("refused", lambda: world.refusal(secret, "echo", ECHO))
    until("its time has come", lambda: datetime.now(UTC).isoformat(), lambda now: now[:19] >= expiry(space, connection))
    assert world.await_status(connection, phase="Expired")
    world.await_condition(connection, "Programmed", "True")
    grant = grant_of(space, connection)
    assert grant is None or not grant["credentials"]


def expiry(space: Space, connection: Target) -> str:
    """Its expiresAt, to the second."""
    body = space.world.find(connection)
    assert body is not None
    return str(body["spec"]["expiresAt"])[:19]


def test_brackets_in_a_glob_mean_themselves_so_they_let_nothing_through(space: Space) -> None:
    world = space.world
    connection = space.connection("literal", "good", expose={"tools": {"allow": ["[a-z]*", "echo/"]}})
    world.await_condition(connection, "Ready", "True")
    assert world.status(connection)["tools"] == 0
    assert "may not call" in (world.refusal(space.secret("literal"), "echo", ECHO) or "")
    world.patch(connection, {"spec": {"expose": {"tools": {"allow": ["e?h*"]}}}})
    world.await_status(connection, tools=1)
    world.await_condition(connection, "Ready", "True")
    assert world.refusal(space.secret("literal"), "echo", ECHO) is None
    assert world.refusal(space.secret("literal"), "whoami", {}) is not None

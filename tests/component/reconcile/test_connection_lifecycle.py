"""AgentMCPConnections from create to gone, on fakes."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from support.certificates import CA_PEM
from support.reconcilers.world import NS, World, world
from toolbox_operator.api.meta import ANNOTATION_ROTATE, Key, Kind
from toolbox_operator.kube.api import CONNECTIONS, SECRETS, Refused

pytestmark = pytest.mark.component


def secret_data(w: World, name: str = "bot-time-mcp", namespace: str = NS) -> dict[str, str]:
    secret = w.kube.peek(SECRETS, Key(namespace, name))
    assert secret is not None, f"no Secret {name}"
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def accepted(w: World, uid: str) -> set[str]:
    """Hashes of the tokens that the host accepts for a connection."""
    grant = w.machine().grants.get(uid)
    return set() if grant is None else {credential.value for credential in grant.credentials}


def uid(w: World, key: Key) -> str:
    return w.body(Kind.CONNECTION, key)["metadata"]["uid"]


async def connected(w: World, **spec: Any) -> Key:
    w.toolbox()
    w.server()
    key = w.connection(**spec)
    await w.settle()
    return key


async def test_a_connection_gets_a_secret_with_everything_an_agent_needs_and_a_grant_with_its_hash() -> None:
    async with world() as w:
        key = await connected(w)
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        assert w.status(Kind.CONNECTION, key)["phase"] == "Connected"
        assert w.status(Kind.CONNECTION, key)["tools"] == 3
        data = secret_data(w)
        assert data["url"] == w.status(Kind.CONNECTION, key)["endpoint"]
        assert data["transport"] == "streamable-http"
        client = json.loads(data["mcp.json"])["mcpServers"]["time"]
        assert client["url"] == data["url"]
        assert client["headers"]["Authorization"] == f"Bearer {data['token']}"
        assert accepted(w, uid(w, key)) == {digest(data["token"])}
        assert w.status(Kind.MCP_SERVER, Key(NS, "time"))["connections"] == 1


async def test_a_rotation_changes_the_secret_only_after_the_new_token_is_accepted_and_drops_the_old_one_later() -> None:
    async with world() as w:
        key = await connected(w)
        old = secret_data(w)["token"]
        w.machine().acks = False
        w.annotate(Kind.CONNECTION, key, ANNOTATION_ROTATE, "1")
        await w.settle()
        data = secret_data(w)
        assert data["token"] == old
        assert accepted(w, uid(w, key)) == {digest(old), digest(data["token-next"])}
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("False", "AckPending")

        w.machine().acknowledge()
        await w.settle()
        new = secret_data(w)
        assert new["token"] == data["token-next"]
        assert "token-next" not in new
        assert new["token"] in new["mcp.json"]
        assert accepted(w, uid(w, key)) == {digest(old), digest(new["token"])}
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")

        await w.advance(601)
        assert accepted(w, uid(w, key)) == {digest(new["token"])}
        assert secret_data(w)["token"] == new["token"]


async def test_a_secret_that_vanished_is_made_again_and_its_token_dropped_at_once() -> None:
    async with world() as w:
        key = await connected(w)
        old = secret_data(w)["token"]
        w.kube.remove(SECRETS, Key(NS, "bot-time-mcp"))
        await w.settle()
        new = secret_data(w)["token"]
        assert new != old
        assert accepted(w, uid(w, key)) == {digest(new)}
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")


async def test_a_damaged_secret_is_repaired_and_a_damaged_token_replaced() -> None:
    async with world() as w:
        key = await connected(w)
        before = secret_data(w)
        edited = {"data": {"url": "aHR0cHM6Ly9ldmls", "mcp.json": None}}
        w.kube.edit(SECRETS, Key(NS, "bot-time-mcp"), edited)
        await w.settle()
        assert secret_data(w) == before
        w.kube.edit(SECRETS, Key(NS, "bot-time-mcp"), {"data": {"token": "d2Vhaw=="}})
        await w.settle()
        token = secret_data(w)["token"]
        assert token.startswith("mtb_") and token != before["token"]
        assert accepted(w, uid(w, key)) == {digest(token)}


async def test_a_foreign_secret_is_a_conflict_and_never_touched() -> None:
    async with world() as w:
        w.secret("bot-time-mcp", password="theirs")
        key = await connected(w)
        assert w.condition(Kind.CONNECTION, key, "Accepted") == ("False", "SecretConflict")
        assert w.status(Kind.CONNECTION, key)["phase"] == "Denied"
        assert secret_data(w) == {"password": "theirs"}
        assert w.machine().grants == {}
        w.kube.remove(SECRETS, Key(NS, "bot-time-mcp"))
        await w.advance(6)
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")


async def test_a_secret_that_kubernetes_does_not_take_is_told_in_status_until_it_does() -> None:
    def quota(name: str) -> None:
        if name.startswith("create Secret"):
            raise Refused(403, "POST /secrets: 403 Forbidden: exceeded quota: few")

    async with world() as w:
        w.kube.before_write = quota
        key = await connected(w)
        assert w.ready(Kind.CONNECTION, key) == ("False", "KubernetesRefused")
        (ready,) = [c for c in w.status(Kind.CONNECTION, key)["conditions"] if c["type"] == "Ready"]
        assert "exceeded quota: few" in ready["message"]
        writes = len(w.kube.writes)
        await w.advance(10)
        assert len(w.kube.writes) == writes
        w.kube.before_write = lambda _: None
        await w.advance(10)
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")


async def test_a_copied_secret_is_ignored() -> None:
    async with world() as w:
        key = await connected(w)
        original = w.kube.peek(SECRETS, Key(NS, "bot-time-mcp"))
        assert original is not None
        copied = {"metadata": {"namespace": NS, "name": "copy", "labels": original["metadata"]["labels"]}}
        w.kube.apply(SECRETS, {**copied, "data": {"token": "bXRiX2V2aWw="}})
        await w.settle()
        before = accepted(w, uid(w, key))
        assert before == {digest(secret_data(w)["token"])}
        assert secret_data(w, "copy") == {"token": "mtb_evil"}


async def test_switching_off_revokes_and_switching_on_accepts_the_same_token_again() -> None:
    async with world() as w:
        key = await connected(w)
        token = secret_data(w)["token"]
        w.patch(Kind.CONNECTION, key, active=False)
        await w.settle()
        assert w.status(Kind.CONNECTION, key)["phase"] == "Disconnected"
        assert w.ready(Kind.CONNECTION, key) == ("False", "Inactive")
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("True", "Programmed")
        assert accepted(w, uid(w, key)) == set()
        w.patch(Kind.CONNECTION, key, active=True)
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        assert accepted(w, uid(w, key)) == {digest(token)}


async def test_until_every_worker_acknowledged_a_revocation_is_pending() -> None:
    async with world() as w:
        key = await connected(w)
        w.machine().acks = False
        w.patch(Kind.CONNECTION, key, active=False)
        await w.settle()
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("False", "RevocationPending")
        assert w.status(Kind.CONNECTION, key)["phase"] == "Disconnected"
        w.machine().acknowledge()
        await w.settle()
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("True", "Programmed")


async def test_a_revocation_is_pending_while_the_host_is_away_and_done_when_it_returns() -> None:
    async with world() as w:
        key = await connected(w)
        w.machine().cut()
        await w.until(lambda: w.status(Kind.TOOLBOX, Key(NS, "tbx-1"))["phase"] == "Unreachable", "outage")
        before = w.body(Kind.CONNECTION, key)
        await w.settle()
        assert w.body(Kind.CONNECTION, key) == before
        w.patch(Kind.CONNECTION, key, active=False)
        await w.settle()
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("False", "RevocationPending")
        await w.restart()
        await w.settle()
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("False", "RevocationPending")
        w.machine().heal()
        await w.until(lambda: accepted(w, uid(w, key)) == set(), "the host is told")
        await w.settle()
        assert w.condition(Kind.CONNECTION, key, "Programmed") == ("True", "Programmed")


async def test_an_expiry_closes_the_connection_at_its_time() -> None:
    async with world() as w:
        key = await connected(w, expiresAt="2026-06-01T13:00:00Z")
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        (grant,) = w.machine().grants.values()
        assert grant.expires_at is not None
        await w.advance(3601)
        assert w.status(Kind.CONNECTION, key)["phase"] == "Expired"
        assert w.ready(Kind.CONNECTION, key) == ("False", "Expired")
        assert accepted(w, uid(w, key)) == set()


async def test_sharing_is_denied_by_default_and_narrowing_it_closes_what_was_open() -> None:
    async with world() as w:
        w.toolbox()
        server = w.server()
        key = w.connection(namespace="team-a")
        await w.settle()
        assert w.status(Kind.CONNECTION, key)["phase"] == "Denied"
        assert w.condition(Kind.CONNECTION, key, "Accepted") == ("False", "NotPermitted")
        assert w.kube.peek(SECRETS, Key("team-a", "bot-time-mcp")) is None
        w.patch(Kind.MCP_SERVER, server, sharing={"namespaces": {"from": "All"}})
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        assert len(accepted(w, uid(w, key))) == 1
        w.patch(Kind.MCP_SERVER, server, sharing={"namespaces": {"from": "Same"}})
        await w.settle()
        assert w.status(Kind.CONNECTION, key)["phase"] == "Denied"
        assert accepted(w, uid(w, key)) == set()


async def test_narrowing_allowed_servers_closes_connections_and_leaves_the_container() -> None:
    async with world() as w:
        toolbox = w.toolbox(allowedServers={"namespaces": {"from": "All"}})
        w.server(namespace="team-a")
        key = w.connection(namespace="team-a", serverRef={"name": "time"})
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        w.patch(Kind.TOOLBOX, toolbox, allowedServers={"namespaces": {"from": "Same"}})
        await w.settle()
        assert w.status(Kind.CONNECTION, key)["phase"] == "Denied"
        assert accepted(w, uid(w, key)) == set()
        assert len(w.machine().desired) == 1


async def test_filters_of_server_and_connection_reach_the_host_unmerged_and_both_count() -> None:
    async with world() as w:
        w.toolbox()
        w.server(expose={"tools": {"allow": ["*"], "deny": ["set_*"]}, "prompts": {"allow": []}})
        key = w.connection(expose={"tools": {"allow": ["*_zone"]}, "resources": {"deny": ["file:*"]}})
        await w.settle()
        (grant,) = w.machine().grants.values()
        assert grant.server_expose.tools.deny == ("set_*",)
        assert grant.expose.tools.allow == ("*_zone",)
        assert (grant.server_expose.prompts.allow, grant.expose.prompts.allow) == ((), ("*",))
        assert (grant.server_expose.resources.deny, grant.expose.resources.deny) == ((), ("file:*",))
        assert w.status(Kind.CONNECTION, key)["tools"] == 1
        w.patch(Kind.MCP_SERVER, Key(NS, "time"), expose={"tools": {"allow": []}})
        await w.settle()
        (grant,) = w.machine().grants.values()
        assert grant.server_expose.tools.allow == ()
        assert w.status(Kind.CONNECTION, key)["tools"] == 0


async def test_a_connection_waits_for_its_server_and_follows_its_readiness() -> None:
    async with world() as w:
        w.toolbox()
        key = w.connection()
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("False", "ServerNotFound")
        assert w.status(Kind.CONNECTION, key)["phase"] == "Pending"
        server = w.server()
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        before = accepted(w, uid(w, key))
        w.patch(Kind.MCP_SERVER, server, state="Stopped")
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("Unknown", "ServerNotReady")
        assert w.status(Kind.CONNECTION, key)["phase"] == "Pending"
        assert accepted(w, uid(w, key)) == before


async def test_a_connection_whose_server_no_watch_has_shown_yet_is_not_told_that_there_is_none() -> None:
    async with world() as w:
        w.toolbox()
        with w.unseen():
            w.server()
        key = w.connection()
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        assert "ServerNotFound" not in w.events.reasons(key.name)


async def test_a_server_made_anew_is_connected_to_again_under_its_new_url() -> None:
    async with world() as w:
        key = await connected(w)
        first, server = secret_data(w), Key(NS, "time")
        w.delete(Kind.MCP_SERVER, server)
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("False", "ServerNotFound")
        assert w.machine().grants == {}
        w.server()
        await w.settle()
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        second = secret_data(w)
        assert second["token"] == first["token"]
        assert second["url"] != first["url"]
        assert accepted(w, uid(w, key)) == {digest(second["token"])}


async def test_deleting_a_connection_revokes_first_and_then_lets_go() -> None:
    async with world() as w:
        key = await connected(w)
        own = uid(w, key)
        w.machine().acks = False
        w.delete(Kind.CONNECTION, key)
        await w.settle()
        assert w.exists(Kind.CONNECTION, key)
        assert w.ready(Kind.CONNECTION, key) == ("False", "RevocationPending")
        w.machine().acks = True
        await w.advance(31)
        assert not w.exists(Kind.CONNECTION, key)
        assert w.machine().grants == {}
        assert w.store.closed[own] == "deleted"
        assert w.kube.peek(SECRETS, Key(NS, "bot-time-mcp")) is None
        assert w.status(Kind.MCP_SERVER, Key(NS, "time"))["connections"] == 0


async def test_a_connection_removed_by_force_is_swept_from_the_host() -> None:
    async with world() as w:
        key = await connected(w)
        w.kube.edit(CONNECTIONS, key, {"metadata": {"finalizers": []}})
        w.delete(Kind.CONNECTION, key)
        await w.settle()
        assert w.machine().grants == {}


async def test_two_rotations_in_a_row_keep_both_replaced_tokens_for_their_time() -> None:
    async with world() as w:
        key = await connected(w)
        tokens = [secret_data(w)["token"]]
        for value in ("1", "2"):
            w.annotate(Kind.CONNECTION, key, ANNOTATION_ROTATE, value)
            await w.settle()
            tokens.append(secret_data(w)["token"])
            await w.advance(60)
        assert len(set(tokens)) == 3
        assert accepted(w, uid(w, key)) == {digest(token) for token in tokens}
        await w.advance(500)
        assert accepted(w, uid(w, key)) == {digest(token) for token in tokens[1:]}
        await w.advance(60)
        assert accepted(w, uid(w, key)) == {digest(tokens[2])}


async def test_a_rotation_asked_for_before_the_first_token_is_done_by_the_first_token() -> None:
    async with world() as w:
        w.toolbox()
        w.server()
        key = w.connection(annotations={ANNOTATION_ROTATE: "now"})
        await w.settle()
        first = secret_data(w)["token"]
        await w.advance(60)
        assert accepted(w, uid(w, key)) == {digest(first)}


async def test_the_gateways_ca_is_copied_and_its_absence_named() -> None:
    async with world() as w:
        w.toolbox(gatewayCASecretRef={"name": "ca", "key": "ca.crt"})
        w.server()
        key = w.connection()
        w.secret("ca", ca_dot_crt=CA_PEM)
        await w.advance(6)
        assert w.ready(Kind.CONNECTION, key) == ("True", "Connected")
        assert secret_data(w)["ca.crt"].strip() == CA_PEM.strip()

"""Secrets and ConfigMaps that change, come and go under what reads them, on fakes: noticed at once."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from support.certificates import CA_PEM, OTHER_CA_PEM
from support.reconcilers.world import NS, World, world
from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.domain.inputs import Source
from toolbox_operator.kube.api import CONFIG_MAPS, SECRETS, Resource

pytestmark = pytest.mark.component

SERVER, TOOLBOX, CONNECTION = Kind.MCP_SERVER, Kind.TOOLBOX, Kind.CONNECTION
KEYS = Key(NS, "keys")


def from_secret(name: str = "keys") -> list[Any]:
    return [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": name, "key": "a"}}}]


def from_config_map(name: str = "keys") -> list[Any]:
    return [{"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": name, "key": "a"}}}]


def told(w: World) -> list[str]:
    """The values the host was told, one for each server."""
    return [desired.env[0].value for desired in w.machine().desired.values()]


def puts_of(w: World) -> int:
    """How often the host was told of a server."""
    return sum(call.startswith("put_instance") for call in w.machine().calls)


def refs(w: World, server: Key) -> tuple[str, str]:
    return w.condition(SERVER, server, "ResolvedRefs")


async def test_a_missing_secret_that_appears_is_used_at_once_and_so_is_its_missing_key() -> None:
    async with world() as w:
        w.toolbox()
        server = w.server(env=from_secret())
        await w.settle()
        assert refs(w, server) == ("False", "SecretNotFound")
        w.secret("keys", b="1")
        await w.settle()
        assert refs(w, server) == ("False", "SecretKeyNotFound")
        w.secret("keys", a="1")
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert told(w) == ["1"]


async def test_a_changed_secret_rolls_the_server_at_once() -> None:
    async with world() as w:
        w.toolbox()
        w.secret("keys", a="1")
        server = w.server(env=from_secret())
        await w.settle()
        for value in ("2", "3", "1"):
            w.secret("keys", a=value)
            await w.settle()
            assert told(w) == [value]
            assert w.ready(SERVER, server) == ("True", "Ready")


async def test_a_config_map_that_comes_changes_and_goes_is_noticed_at_once() -> None:
    async with world() as w:
        w.toolbox()
        server = w.server(env=from_config_map())
        await w.settle()
        assert refs(w, server) == ("False", "ConfigMapNotFound")
        w.config_map("keys", a="1")
        await w.settle()
        assert told(w) == ["1"]
        w.config_map("keys", a="2")
        await w.settle()
        assert told(w) == ["2"]
        w.kube.remove(CONFIG_MAPS, KEYS)
        await w.settle()
        assert refs(w, server) == ("False", "ConfigMapNotFound")
        assert told(w) == ["2"], "what runs is left as it is"


async def test_pull_credentials_that_change_are_told_at_once() -> None:
    def login(password: str) -> str:
        return json.dumps({"auths": {"registry.example.com": {"username": "me", "password": password}}})

    async with world() as w:
        w.toolbox()
        w.secret("login", **{"_dot_dockerconfigjson": login("old")})
        w.server(imagePullSecrets=[{"name": "login"}])
        await w.settle()
        w.secret("login", **{"_dot_dockerconfigjson": login("new")})
        await w.settle()
        (desired,) = w.machine().desired.values()
        assert [each.password for each in desired.registry_credentials] == ["new"]


@pytest.mark.parametrize("value", ["1", "2"], ids=["with the same value", "with another value"])
async def test_a_secret_that_is_deleted_and_made_again_is_noticed_both_times(value: str) -> None:
    async with world() as w:
        w.toolbox()
        w.secret("keys", a="1")
        server = w.server(env=from_secret())
        await w.settle()
        puts = puts_of(w)
        w.kube.remove(SECRETS, KEYS)
        await w.settle()
        assert refs(w, server) == ("False", "SecretNotFound")
        assert told(w) == ["1"], "what runs is left as it is"
        w.secret("keys", a=value)
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert told(w) == [value]
        assert puts_of(w) == puts + (value != "1")


async def test_a_change_that_leaves_the_value_as_it_was_tells_the_host_nothing_and_writes_nothing() -> None:
    async with world() as w:
        w.toolbox()
        w.secret("keys", a="1")
        w.server(env=from_secret())
        await w.settle()
        writes, puts = list(w.kube.writes), puts_of(w)
        w.kube.edit(SECRETS, KEYS, {"metadata": {"annotations": {"owner": "somebody"}}})
        w.secret("keys", a="1", unused="2")
        w.secret("other", a="3")
        await w.settle()
        assert (w.kube.writes, puts_of(w)) == (writes, puts)


async def test_a_change_between_reading_and_telling_is_not_lost() -> None:
    async with world() as w:
        w.toolbox()
        w.secret("keys", a="old")
        read = w.kube.get

        async def get(resource: Resource, key: Key) -> Body | None:
            body = await read(resource, key)
            if key == KEYS and body is not None and body["data"]["a"] == encoded("old"):
                w.secret("keys", a="new")
            return body

        w.kube.get = get
        server = w.server(env=from_secret())
        await w.settle()
        assert told(w) == ["new"]
        assert w.ready(SERVER, server) == ("True", "Ready")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def test_one_secret_of_many_servers_rolls_each_of_them_once() -> None:
    async with world() as w:
        w.toolbox()
        w.secret("keys", a="1")
        for number in range(100):
            w.server(f"s-{number:03}", env=from_secret())
        w.server("other", env=from_secret("keys-of-its-own"))
        await w.settle()
        puts = puts_of(w)
        for value in ("2", "3"):  # both before anybody was there: the first is skipped
            w.secret("keys", a=value)
        await w.settle()
        assert told(w) == ["3"] * 100
        assert puts_of(w) == puts + 100


async def test_a_change_that_the_watch_missed_is_found_when_it_begins_anew() -> None:
    async with world() as w:
        w.toolbox()
        w.secret("keys", a="1")
        w.server(env=from_secret())
        await w.settle()
        w.watching_sources = False
        w.secret("keys", a="2")
        await w.settle()
        assert told(w) == ["1"]
        w.sources.missed(Source.SECRET)
        await w.advance(60)
        assert told(w) == ["2"]


async def test_a_change_that_nobody_told_of_is_found_at_resync() -> None:
    async with world() as w:
        w.toolbox()
        w.secret("keys", a="1")
        w.server(env=from_secret())
        await w.settle()
        w.watching_sources = False
        w.secret("keys", a="2")
        await w.advance(601)
        assert told(w) == ["2"]


async def test_nothing_is_followed_of_a_server_that_is_gone_or_reads_nothing_any_more() -> None:
    async with world() as w:
        w.toolbox()
        w.secret("keys", a="1")
        first, second = w.server("first", env=from_secret()), w.server("second", env=from_config_map())
        await w.settle()
        assert len(w.sources) == 3, "and the Toolbox's token"
        w.patch(SERVER, second, env=[])
        w.delete(SERVER, first)
        await w.settle()
        assert len(w.sources) == 1
        w.delete(SERVER, second)
        w.delete(TOOLBOX, Key(NS, "tbx-1"))
        await w.settle()
        assert len(w.sources) == 0


async def test_a_refused_token_that_is_put_right_is_used_at_once() -> None:
    async with world() as w:
        w.machine().token = "good"
        toolbox = w.toolbox()
        await w.until(lambda: w.condition(TOOLBOX, toolbox, "Reachable") == ("False", "HostUnauthorized"), "refused")
        w.secret("tbx-1-dtma", token="good")
        await w.until(lambda: w.ready(TOOLBOX, toolbox) == ("True", "Ready"), "accepted")
        assert w.clock.monotonic() == 0.0


async def test_a_secret_of_a_toolbox_that_was_missing_or_unusable_is_used_at_once() -> None:
    async with world() as w:
        toolbox = w.toolbox(caSecretRef={"name": "ca", "key": "ca.crt"})
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("False", "SecretNotFound")
        w.secret("ca", ca_dot_crt="no certificate")
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("False", "SecretInvalid")
        w.secret("ca", ca_dot_crt=CA_PEM)
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("True", "Ready")


async def test_another_ca_of_the_gateway_reaches_the_secrets_of_its_connections_at_once() -> None:
    def handed_out() -> str:
        secret = w.kube.peek(SECRETS, Key(NS, "bot-time-mcp"))
        assert secret is not None
        return base64.b64decode(secret["data"]["ca.crt"]).decode().strip()

    async with world() as w:
        w.secret("ca", ca_dot_crt=CA_PEM)
        w.toolbox(gatewayCASecretRef={"name": "ca", "key": "ca.crt"})
        w.server()
        key = w.connection()
        await w.settle()
        assert handed_out() == CA_PEM.strip()
        w.secret("ca", ca_dot_crt=OTHER_CA_PEM)
        await w.settle()
        assert handed_out() == OTHER_CA_PEM.strip()
        w.secret("ca", ca_dot_crt="no certificate")
        await w.settle()
        assert w.ready(CONNECTION, key)[0] == "False"
        w.secret("ca", ca_dot_crt=CA_PEM)
        await w.settle()
        assert w.ready(CONNECTION, key) == ("True", "Connected")
        assert handed_out() == CA_PEM.strip()

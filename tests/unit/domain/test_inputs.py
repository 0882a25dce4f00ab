"""Values from Secrets and ConfigMaps, and the instance that is made of them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.reconcilers.observed import server
from toolbox_dtma.wire import Sessions
from toolbox_operator.api.mcpserver import MCPServerSpec
from toolbox_operator.domain.inputs import (
    Inputs,
    Ref,
    Source,
    Unresolved,
    desired_instance,
    refs_of,
    resolve,
    resolved_server,
)

KEYS = Ref(Source.SECRET, "keys")
CONFIG = Ref(Source.CONFIG_MAP, "conf")
PULL = Ref(Source.SECRET, "pull")


def spec(**more: Any) -> MCPServerSpec:
    parsed = server(more).spec
    assert parsed is not None
    return parsed


def encoded(**data: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}


def pull_secret(auths: Any) -> dict[str, Any]:
    return {"data": {".dockerconfigjson": base64.b64encode(json.dumps({"auths": auths}).encode()).decode()}}


STDIO = {"transport": "stdio", "port": None}
FROM_SECRET = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}
FROM_CONFIG = {"name": "CONF", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "b"}}}


def test_values_are_taken_from_where_the_spec_says() -> None:
    wanted = spec(env=[{"name": "TZ", "value": "UTC"}, FROM_SECRET, FROM_CONFIG])
    assert refs_of(wanted) == (KEYS, CONFIG)
    found = resolve(wanted, {KEYS: encoded(a="s3cret"), CONFIG: {"data": {"b": "plain"}}})
    assert isinstance(found, Inputs)
    assert [(item.name, item.value) for item in found.env] == [("TZ", "UTC"), ("KEY", "s3cret"), ("CONF", "plain")]
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({KEYS: None}, "SecretNotFound"),
        ({KEYS: {}}, "SecretKeyNotFound"),
        ({KEYS: encoded(b="x")}, "SecretKeyNotFound"),
        ({KEYS: {"data": {"a": "gA=="}}}, "SecretInvalid"),
        ({KEYS: {"data": {"a": "not base64!"}}}, "SecretInvalid"),
        ({KEYS: encoded(a="a\0b")}, "SecretInvalid"),
        ({KEYS: encoded(a="x" * 32769)}, "SecretInvalid"),
        ({KEYS: encoded(a="x"), CONFIG: None}, "ConfigMapNotFound"),
        ({KEYS: encoded(a="x"), CONFIG: {"data": {"c": "x"}}}, "ConfigMapKeyNotFound"),
    ],
)
def test_a_reference_without_a_usable_value_is_named_without_its_value(found: Any, reason: str) -> None:
    result = resolve(spec(env=[FROM_SECRET, FROM_CONFIG]), found)
    assert isinstance(result, Unresolved)
    assert result.reason == reason
    assert "xxx" not in result.message


@given(
    st.dictionaries(st.sampled_from(["A", "B", "C"]), st.text(st.characters(codec="utf-8", exclude_characters="\0")))
)
def test_the_hash_changes_exactly_with_the_values(values: dict[str, str]) -> None:
    first = resolve(spec(env=[{"name": name, "value": value} for name, value in values.items()]), {})
    assert isinstance(first, Inputs)
    again = resolve(spec(env=[{"name": name, "value": value} for name, value in values.items()]), {})
    assert isinstance(again, Inputs) and again.hash == first.hash
    for name in values:
        other = {**values, name: values[name] + "x"}
        changed = resolve(spec(env=[{"name": n, "value": v} for n, v in other.items()]), {})
        assert isinstance(changed, Inputs) and changed.hash != first.hash


def test_only_credentials_of_the_images_own_registry_leave_the_cluster() -> None:
    auth = base64.b64encode(b"user:pass:word").decode()
    secret = pull_secret(
        {
            "https://registry.example.com/v2/": {"auth": auth},
            "other.example.com": {"username": "u", "password": "p"},
        }
    )
    found = resolve(spec(imagePullSecrets=[{"name": "pull"}]), {PULL: secret})
    assert isinstance(found, Inputs)
    (credential,) = found.registries
    assert (credential.registry, credential.username, credential.password) == (
        "registry.example.com",
        "user",
        "pass:word",
    )


def test_docker_hub_is_known_under_all_its_names() -> None:
    secret = pull_secret({"https://index.docker.io/v1/": {"username": "u", "password": "p"}})
    found = resolve(spec(image="team/server:1", imagePullSecrets=[{"name": "pull"}]), {PULL: secret})
    assert isinstance(found, Inputs)
    assert found.registries[0].registry == "docker.io"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"auths": []}', '{"auths": {"registry.example.com": {"auth": "!"}}}']
)
def test_a_pull_secret_that_is_no_docker_configuration_is_named(content: str) -> None:
    secret = {"data": {".dockerconfigjson": base64.b64encode(content.encode()).decode()}}
    result = resolve(spec(imagePullSecrets=[{"name": "pull"}]), {PULL: secret})
    assert isinstance(result, Unresolved)
    assert result.reason == "SecretInvalid"


def test_defaults_are_filled_in_and_quantities_become_numbers() -> None:
    obj = server({"resources": {"limits": {"memory": "256Mi", "cpu": "500m"}}, "security": {"runAsUser": 10001}})
    assert obj.spec is not None
    desired = desired_instance(obj, obj.spec, Inputs((), ()))
    assert desired.path == "/mcp"
    assert (desired.limits.memory_bytes, desired.limits.cpu_millis, desired.limits.pids) == (256 * 2**20, 500, 256)
    assert desired.security.run_as_user == 10001
    assert desired.security.read_only_root_filesystem


def test_a_server_that_speaks_stdio_has_sessions_and_neither_port_nor_path() -> None:
    obj = server(STDIO)
    assert obj.spec is not None
    resolved = resolved_server(obj, obj.spec)
    assert (resolved.transport, resolved.port, resolved.path) == ("stdio", None, None)
    assert (resolved.max_sessions, resolved.idle_timeout) == (10, "30m")
    desired = desired_instance(obj, obj.spec, Inputs(env=(), registries=()))
    assert (desired.transport, desired.port, desired.path) == ("stdio", None, None)
    assert desired.sessions == Sessions(max_sessions=10, idle_seconds=1800)


def test_the_sessions_of_a_spec_reach_the_host() -> None:
    obj = server({**STDIO, "sessions": {"maxSessions": 2, "idleTimeout": "1m30s"}})
    assert obj.spec is not None
    desired = desired_instance(obj, obj.spec, Inputs(env=(), registries=()))
    assert desired.sessions == Sessions(max_sessions=2, idle_seconds=90)


def test_a_host_that_knows_no_stdio_is_told_nothing_new_of_other_servers() -> None:
    obj = server()
    assert obj.spec is not None
    desired = desired_instance(obj, obj.spec, Inputs(env=(), registries=()))
    assert "sessions" not in desired.model_dump(by_alias=True)
    resolved = resolved_server(obj, obj.spec)
    assert (resolved.port, resolved.path, resolved.max_sessions, resolved.idle_timeout) == (3001, "/mcp", None, None)


def test_the_host_is_told_of_an_egress_only_where_it_is_not_the_default() -> None:
    """An older host refuses a member it does not know: better than to let out more than was asked for."""
    told: dict[str, Any] = {}
    for egress in ("None", "Internet", "All"):
        obj = server({"security": {"egress": egress}})
        assert obj.spec is not None
        desired = desired_instance(obj, obj.spec, Inputs((), ()))
        told[egress] = desired.model_dump(mode="json", by_alias=True)["security"].get("egress")
    assert told == {"None": "None", "Internet": None, "All": "All"}


def test_a_server_that_speaks_sse_listens_and_has_a_path_of_its_own_by_default() -> None:
    for spec_of, path in ({}, "/sse"), ({"path": "/events"}, "/events"):
        obj = server({"transport": "sse", **spec_of})
        assert obj.spec is not None
        resolved = resolved_server(obj, obj.spec)
        assert (resolved.transport, resolved.port, resolved.path) == ("sse", 3001, path)
        assert (resolved.max_sessions, resolved.idle_timeout) == (None, None)
        desired = desired_instance(obj, obj.spec, Inputs(env=(), registries=()))
        assert (desired.transport, desired.port, desired.path, desired.sessions) == ("sse", 3001, path, None)

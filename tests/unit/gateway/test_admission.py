"""What is decided by the head of a request."""

from __future__ import annotations

import hashlib

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from toolbox_dtma.gateway.admission import Ask, admit
from toolbox_dtma.gateway.refusal import Refusal
from toolbox_dtma.gateway.state import PolicyState
from toolbox_dtma.gateway.throttle import FailureThrottle
from toolbox_dtma.link.messages import Change, GrantPolicy, KeyRing, SigningKey, Snapshot
from toolbox_dtma.wire import Credential, Expose, HostConfig

RING = KeyRing(signing="k", keys=(SigningKey(kid="k", secret="A" * 43),))
ORIGIN = "https://console.example.com"


def policy(config: HostConfig | None = None) -> PolicyState:
    state = PolicyState(unix_clock=lambda: 0.0, monotonic=lambda: 0.0, grace_seconds=30)
    grants = tuple(
        GrantPolicy(
            uid=uid,
            instance=f"i-{uid}",
            credentials=(Credential(value=hashlib.sha256(f"t-{uid}".encode()).hexdigest()),),
            server_expose=Expose(),
            expose=Expose(),
        )
        for uid in ("a", "b")
    )
    config = config or HostConfig(gateway_url="https://GW.example.com:30443", allowed_origins=(ORIGIN,))
    state.apply(Snapshot(revision=1, part=0, parts=1, change=Change(keyring=RING, grants=grants, config=config)))
    return state


def ask(path: str = "/servers/i-a/mcp", *, method: str = "POST", **headers: str) -> Ask:
    values = CIMultiDict({"Host": "gw.example.com:30443", "Authorization": "Bearer t-a", **headers})
    return Ask(method, path, CIMultiDictProxy(values), "192.0.2.1")


def status(question: Ask, state: PolicyState | None = None) -> int:
    try:
        admit(question, state or policy(), FailureThrottle(monotonic=lambda: 0.0))
    except Refusal as refusal:
        return refusal.status
    return 0


@pytest.mark.parametrize("path", ["/servers/i-a/mcp", "/servers/i-a/mcp?", "/servers/i-a/mcp?token=x&y"])
def test_the_exact_path_is_ours_whatever_its_query(path: str) -> None:
    assert status(ask(path)) == 0


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/servers/i-a/mcp/",
        "/servers/i-a/MCP",
        "/servers//mcp",
        "//servers/i-a/mcp",
        "/servers/i-a//mcp",
        "/servers/../servers/i-a/mcp",
        "/servers/./i-a/mcp",
        "/servers/i%2Da/mcp",
        "/servers/i-a/mcp%00",
        "/servers/i-a/mcp;x",
        "/servers/i-a%2Fmcp",
        "/servers/i-a/mcp\n",
        "/servers/" + "a" * 129 + "/mcp",
        "http://gw.example.com/servers/i-a/mcp",
        "/.well-known/oauth-protected-resource/servers/i-a/mcp",
        "/.well-known/oauth-protected-resource",
        "/healthz",
        "*",
    ],
)
def test_any_other_path_is_not_found(path: str) -> None:
    assert status(ask(path)) == 404


@pytest.mark.parametrize("host", ["gw.example.com", "GW.Example.Com:30443", "gw.example.com:1"])
def test_the_name_of_the_gateway_is_accepted_in_any_case_and_with_any_port(host: str) -> None:
    assert status(ask(Host=host)) == 0


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com",
        "gw.example.com.",
        "gw.example.com@evil.example.com",
        "evil.example.com@gw.example.com",
        "gw.example.com/evil",
        "gw.example.com?evil",
        "gw.example.com#evil",
        "gw.example.com:evil",
        "gw.example.com, evil.example.com",
        "//gw.example.com",
        "",
        "[::1",
    ],
)
def test_another_host_is_refused(host: str) -> None:
    assert status(ask(Host=host)) == 421


@pytest.mark.parametrize(
    ("origin", "expected"), [(ORIGIN, 0), ("https://evil.example.com", 403), ("null", 403), (ORIGIN + "/", 403)]
)
def test_an_origin_must_be_an_allowed_one(origin: str, expected: int) -> None:
    assert status(ask(Origin=origin)) == expected


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_four_methods_are_relayed(method: str) -> None:
    assert status(ask(method=method)) == 0


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "TRACE", "CONNECT"])
def test_no_other_method_is(method: str) -> None:
    assert status(ask(method=method)) == 405


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic t-a", "t-a", "Bearer t-a t-a", "Bearer\tt-a", "Bearer é"]
)
def test_anything_but_a_known_bearer_token_is_401(value: str) -> None:
    assert status(ask(Authorization=value)) == 401


def test_two_tokens_are_none() -> None:
    headers = CIMultiDict({"Host": "gw.example.com"})
    headers.extend([("Authorization", "Bearer t-a"), ("Authorization", "Bearer t-a")])
    assert status(Ask("POST", "/servers/i-a/mcp", CIMultiDictProxy(headers), "192.0.2.1")) == 401


def test_a_token_of_another_server_is_told_nothing_about_servers() -> None:
    answers: list[tuple[int, object]] = []
    for instance in ("i-b", "no-such"):
        with pytest.raises(Refusal) as refused:
            admit(ask(f"/servers/{instance}/mcp"), policy(), FailureThrottle(monotonic=lambda: 0.0))
        answers.append((refused.value.status, refused.value.payload))
    assert answers[0] == answers[1] and answers[0][0] == 403


@pytest.mark.parametrize(
    "question",
    [
        ask("/servers/i-b/mcp"),
        ask("/servers/i-a/mcp/"),
        ask(method="PUT"),
        ask(Origin="https://evil.example.com"),
        ask(Host="evil.example.com"),
    ],
)
def test_a_refusal_tells_the_log_whose_credential_was_used(question: Ask) -> None:
    with pytest.raises(Refusal) as refused:
        admit(question, policy(), FailureThrottle(monotonic=lambda: 0.0))
    assert refused.value.holder == {"connection": "a", "instance": "i-a"}
    headers = CIMultiDict(question.headers)
    headers["Authorization"] = "Bearer unknown"
    with pytest.raises(Refusal) as refused:
        admit(
            Ask(question.method, question.path, CIMultiDictProxy(headers), question.source),
            policy(),
            FailureThrottle(monotonic=lambda: 0.0),
        )
    assert refused.value.holder == {}


def test_a_gateway_at_an_ipv6_address_is_known_by_it() -> None:
    state = policy(HostConfig(gateway_url="https://[2001:db8::1]:30443"))
    assert status(ask(Host="[2001:DB8::1]:30443"), state) == 0
    assert status(ask(Host="[2001:db8::2]:30443"), state) == 421


def test_without_a_snapshot_the_answer_is_try_again() -> None:
    empty = PolicyState(unix_clock=lambda: 0.0, monotonic=lambda: 0.0, grace_seconds=30)
    with pytest.raises(Refusal) as refused:
        admit(ask(), empty, FailureThrottle(monotonic=lambda: 0.0))
    assert refused.value.status == 503 and "Retry-After" in refused.value.headers


def test_the_challenge_names_no_metadata() -> None:
    with pytest.raises(Refusal) as refused:
        admit(ask(Authorization=""), policy(), FailureThrottle(monotonic=lambda: 0.0))
    assert refused.value.headers["WWW-Authenticate"] == 'Bearer realm="magic-toolbox", error="invalid_token"'


def test_a_source_that_keeps_failing_is_slowed_down_and_others_are_not() -> None:
    state, throttle = policy(), FailureThrottle(monotonic=lambda: 0.0, burst=2)
    seen: list[int] = []
    for _ in range(4):
        with pytest.raises(Refusal) as refused:
            admit(ask(Authorization="Bearer x"), state, throttle)
        seen.append(refused.value.status)
    assert seen == [401, 401, 429, 429]
    assert admit(ask(), state, throttle).grant.uid == "a"

"""Policy as it comes in, and what it says at any moment."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import pytest

from toolbox_dtma.gateway.state import PolicyOutOfOrder, PolicyState
from toolbox_dtma.gateway.upstream.connection import Origin
from toolbox_dtma.link.messages import Change, Delta, GrantPolicy, InstanceRoute, KeyRing, SigningKey, Snapshot, Surface
from toolbox_dtma.wire import Credential, Expose, NameFilter

RING = KeyRing(signing="k", keys=(SigningKey(kid="k", secret="A" * 43),))


class Clock:
    """A clock that stands still until told otherwise."""

    def __init__(self, now: float = 1_000_000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


def at(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def secret(token: str, not_after: datetime.datetime | None = None) -> Credential:
    return Credential(value=hashlib.sha256(token.encode()).hexdigest(), not_after=not_after)


def grant(uid: str = "g", *tokens: str, **more: Any) -> GrantPolicy:
    values: dict[str, Any] = {
        "instance": "i",
        "credentials": tuple(secret(token) for token in tokens),
        "server_expose": Expose(),
        "expose": Expose(),
        **more,
    }
    return GrantPolicy(uid=uid, **values)


def route(id: str = "i", **more: Any) -> InstanceRoute:
    values: dict[str, Any] = {
        "incarnation": "n", "address": "10.0.0.2", "port": 3000, "path": "/mcp", "state": "running", **more
    }  # fmt: skip
    return InstanceRoute(id=id, **values)


def loaded(*grants: GrantPolicy, clock: Clock | None = None, monotonic: Clock | None = None) -> PolicyState:
    state = PolicyState(unix_clock=clock or Clock(), monotonic=monotonic or Clock(), grace_seconds=30)
    change = Change(keyring=RING, grants=grants, instances=(route(),))
    state.apply(Snapshot(revision=5, part=0, parts=1, change=change))
    return state


def opened(state: PolicyState, token: str) -> list[str]:
    return [admitted.grant.uid for admitted in state.authenticate(token)]


def test_nothing_is_served_before_the_last_part_of_the_snapshot() -> None:
    state = PolicyState(unix_clock=Clock(), monotonic=Clock(), grace_seconds=30)
    assert state.apply(Snapshot(revision=3, part=1, parts=2, change=Change(grants=(grant("g", "t"),)))) is None
    assert not state.serving and opened(state, "t") == []
    applied = state.apply(Snapshot(revision=3, part=0, parts=2, change=Change(keyring=RING)))
    assert applied is not None and applied.revision == 3
    assert state.serving and opened(state, "t") == ["g"]


def test_a_snapshot_replaces_everything() -> None:
    state = loaded(grant("old", "t"))
    applied = state.apply(Snapshot(revision=9, part=0, parts=1, change=Change(keyring=RING)))
    assert applied is not None and applied.touched == {"old"}
    assert opened(state, "t") == [] and state.target("i") is None


def test_a_delta_changes_what_it_names_only() -> None:
    state = loaded(grant("a", "ta"), grant("b", "tb"))
    applied = state.apply(Delta(revision=6, change=Change(grants_gone=("a",))))
    assert applied is not None and applied.touched == {"a"}
    assert opened(state, "ta") == [] and opened(state, "tb") == ["b"]


def test_a_grant_put_again_drops_the_credentials_it_no_longer_has() -> None:
    state = loaded(grant("a", "old", "both"))
    state.apply(Delta(revision=6, change=Change(grants=(grant("a", "both", "new"),))))
    assert [opened(state, token) for token in ("old", "both", "new")] == [[], ["a"], ["a"]]


def test_two_grants_may_have_the_same_token() -> None:
    state = loaded(grant("a", "t"), grant("b", "t", instance="j"))
    assert sorted(opened(state, "t")) == ["a", "b"]
    state.apply(Delta(revision=6, change=Change(grants_gone=("a",))))
    assert opened(state, "t") == ["b"]


@pytest.mark.parametrize("revision", [4, 5])
def test_a_delta_that_does_not_follow_is_refused(revision: int) -> None:
    state = loaded()
    with pytest.raises(PolicyOutOfOrder):
        state.apply(Delta(revision=revision, change=Change()))


def test_a_delta_before_any_snapshot_is_refused() -> None:
    state = PolicyState(unix_clock=Clock(), monotonic=Clock(), grace_seconds=30)
    with pytest.raises(PolicyOutOfOrder):
        state.apply(Delta(revision=1, change=Change()))


def test_a_delta_on_a_new_connection_waits_for_its_snapshot() -> None:
    state = loaded()
    state.connection_lost()
    with pytest.raises(PolicyOutOfOrder):
        state.apply(Delta(revision=6, change=Change()))


def test_parts_of_two_snapshots_are_not_mixed() -> None:
    state = PolicyState(unix_clock=Clock(), monotonic=Clock(), grace_seconds=30)
    state.apply(Snapshot(revision=3, part=0, parts=2, change=Change()))
    with pytest.raises(PolicyOutOfOrder):
        state.apply(Snapshot(revision=4, part=1, parts=2, change=Change()))


def test_an_unusable_key_ring_changes_nothing() -> None:
    state = loaded(grant("a", "t"))
    bad = Change(keyring=KeyRing(signing="none", keys=()), grants_gone=("a",))
    for message in (Delta(revision=6, change=bad), Snapshot(revision=6, part=0, parts=1, change=bad)):
        with pytest.raises(PolicyOutOfOrder):
            state.apply(message)
        state.connection_lost()
    assert opened(state, "t") == ["a"] and state.revision == 5


def test_the_last_policy_serves_for_the_grace_period_after_the_socket_was_lost() -> None:
    clock = Clock()
    state = loaded(monotonic=clock)
    state.connection_lost()
    clock.now += 29.9
    assert state.serving
    state.connection_lost()
    clock.now += 0.2
    assert not state.serving
    state.apply(Snapshot(revision=7, part=0, parts=1, change=Change(keyring=RING)))
    assert state.serving


def test_a_token_ends_with_its_grant_or_with_itself() -> None:
    clock = Clock(100.0)
    state = loaded(
        grant("a", "t", expires_at=at(200)),
        grant("b", credentials=(secret("u", at(150)),), expires_at=at(200)),
        clock=clock,
    )
    assert state.authenticate("t")[0].ends_at == 200
    assert state.authenticate("u")[0].ends_at == 150
    clock.now = 150.0
    assert opened(state, "u") == [] and opened(state, "t") == ["a"]
    clock.now = 200.0
    assert opened(state, "t") == []


def test_what_runs_is_admitted_only_by_the_same_credential_for_the_same_instance() -> None:
    state = loaded(grant("a", "t"))
    digest = state.authenticate("t")[0].digest
    assert state.still_admitted("a", digest, "i")
    assert state.still_admitted("a", digest, "j") is None
    assert state.still_admitted("b", digest, "i") is None
    state.apply(Delta(revision=6, change=Change(grants=(grant("a", "other"),))))
    assert state.still_admitted("a", digest, "i") is None


@pytest.mark.parametrize(
    ("changes", "origin"),
    [
        ({}, Origin("10.0.0.2", 3000, "n")),
        ({"address": "fd00::2"}, Origin("fd00::2", 3000, "n")),
        ({"incarnation": "m"}, Origin("10.0.0.2", 3000, "m")),
        ({"address": None, "port": 0, "bridge": "/run/b.sock"}, Origin("", 0, "n", "/run/b.sock")),
        ({"address": None, "port": 0, "bridge": "/run/b.sock", "state": "stopped"}, None),
        ({"address": None}, None),
        ({"state": "stopped"}, None),
        ({"state": "unavailable"}, None),
    ],
)
def test_an_instance_is_reached_where_it_runs(changes: dict[str, Any], origin: Origin | None) -> None:
    state = loaded()
    state.apply(Delta(revision=6, change=Change(instances=(route(**changes),))))
    target = state.target("i")
    assert target is not None and target.origin == origin


def test_the_view_follows_grant_and_surface() -> None:
    state = loaded(grant("a", "t", expose=Expose(tools=NameFilter(allow=("x",)))))
    view = state.view("a")
    assert view is not None and view.tools.restricted and not view.tools.allow("x")
    assert view.restricted and not view.prompts.restricted and view.prompts.allow("anything")
    state.apply(Delta(revision=6, change=Change(instances=(route(surface=Surface(tools=("x", "y"))),))))
    view = state.view("a")
    assert view is not None and view.tools.allow("x") and not view.tools.allow("y")
    assert state.view("a") is view
    state.apply(Delta(revision=7, change=Change(grants=(grant("a", "t"),))))
    view = state.view("a")
    assert view is not None and not view.restricted
    assert state.view("b") is None

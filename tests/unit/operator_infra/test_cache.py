"""The cache never goes back in time, whatever the order in which it is told."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.reconcilers.fakes import body_of, version
from toolbox_operator.api.meta import LABEL_CONNECTION, Body, Key, Kind
from toolbox_operator.kube.api import CONNECTIONS, SECRETS
from toolbox_operator.kube.cache import EventType, ObjectCache, SecretCache

KEY = Key("ns", "a")
Change = tuple[Kind, Key, str | None, str | None]


def watched_cache() -> tuple[ObjectCache, list[Change]]:
    cache, changes = ObjectCache(), list[Change]()
    cache.listen(lambda kind, key, old, new: changes.append((kind, key, version(old), version(new))))
    return cache, changes


def tbx(name: str, number: int, **more: Any) -> dict[str, Any]:
    return body_of(Kind.TOOLBOX, name, number, **more)


def test_an_older_event_never_overwrites_a_newer_one() -> None:
    cache, changes = watched_cache()
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("a", 10))
    assert not cache.apply(Kind.TOOLBOX, "MODIFIED", tbx("a", 9))
    assert version(cache.get(Kind.TOOLBOX, KEY)) == "10"
    assert changes == [(Kind.TOOLBOX, KEY, None, "10")]


def test_the_same_version_twice_is_no_change() -> None:
    cache, changes = watched_cache()
    cache.apply(Kind.TOOLBOX, None, tbx("a", 10))
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("a", 10))
    assert len(changes) == 1


def test_versions_compare_as_numbers() -> None:
    cache, _ = watched_cache()
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("a", 9))
    cache.apply(Kind.TOOLBOX, "MODIFIED", tbx("a", 10))
    assert version(cache.get(Kind.TOOLBOX, KEY)) == "10"


def test_a_late_deletion_of_the_former_incarnation_leaves_the_new_one() -> None:
    cache, changes = watched_cache()
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("a", 10, uid="old"))
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("a", 14, uid="new"))
    assert not cache.apply(Kind.TOOLBOX, "DELETED", tbx("a", 12, uid="old"))
    assert version(cache.get(Kind.TOOLBOX, KEY)) == "14"
    assert changes[-1] == (Kind.TOOLBOX, KEY, "10", "14")


def test_a_list_taken_before_a_deletion_does_not_bring_the_object_back() -> None:
    cache, _ = watched_cache()
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("a", 10))
    cache.apply(Kind.TOOLBOX, "DELETED", tbx("a", 12))
    cache.replace(Kind.TOOLBOX, [tbx("a", 10)], "11")
    assert cache.get(Kind.TOOLBOX, KEY) is None


def test_a_list_lets_go_of_what_it_lacks_and_keeps_what_came_after_it() -> None:
    cache, changes = watched_cache()
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("gone", 10))
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("young", 30))
    assert cache.replace(Kind.TOOLBOX, [tbx("listed", 15)], "20")
    assert set(cache.keys(Kind.TOOLBOX)) == {Key("ns", "young"), Key("ns", "listed")}
    assert (Kind.TOOLBOX, Key("ns", "gone"), "10", None) in changes


def test_a_list_that_is_older_than_one_before_changes_nothing() -> None:
    cache, changes = watched_cache()
    assert cache.replace(Kind.TOOLBOX, [tbx("a", 10)], "20")
    assert not cache.replace(Kind.TOOLBOX, [], "15")
    assert cache.count(Kind.TOOLBOX) == 1
    assert len(changes) == 1


def test_bodies_are_kept_without_managed_fields() -> None:
    cache, _ = watched_cache()
    cache.apply(Kind.TOOLBOX, "ADDED", tbx("a", 1, metadata={"managedFields": [{"manager": "kubectl"}]}))
    body = cache.get(Kind.TOOLBOX, KEY)
    assert body is not None
    assert "managedFields" not in body["metadata"]


def test_the_answer_to_our_own_write_is_known_before_the_watch_brings_it() -> None:
    cache, changes = watched_cache()
    written = body_of(Kind.CONNECTION, "a", 7)
    cache.absorb(CONNECTIONS, written)
    cache.absorb(SECRETS, {"metadata": {"namespace": "ns", "name": "s", "resourceVersion": "8"}})
    assert not cache.apply(Kind.CONNECTION, "MODIFIED", written)
    assert changes == [(Kind.CONNECTION, KEY, None, "7")]


Step = tuple[EventType, int]


@given(st.permutations(list(range(1, 9))), st.booleans())
def test_events_in_any_order_end_in_the_newest_state(order: list[int], deleted_last: bool) -> None:
    cache, _ = watched_cache()
    for number in order:
        type_: EventType = "DELETED" if deleted_last and number == 8 else "MODIFIED"
        cache.apply(Kind.TOOLBOX, type_, tbx("a", number))
    assert version(cache.get(Kind.TOOLBOX, KEY)) == (None if deleted_last else "8")


def secret(number: int, *, owner: str | None = "c", uid: str = "uid-c") -> Body:
    owners = [{"kind": "AgentMCPConnection", "name": owner, "uid": uid}] if owner else []
    labels = {LABEL_CONNECTION: uid}
    metadata = {"namespace": "ns", "name": "s", "resourceVersion": str(number)}
    return {"metadata": {**metadata, "labels": labels, "ownerReferences": owners}}


def test_a_secret_leads_to_the_connection_that_owns_it() -> None:
    secrets = SecretCache(ObjectCache())
    assert secrets.apply("DELETED", secret(5)) == Key("ns", "c")


def test_a_secret_without_owner_reference_leads_to_the_connection_its_label_names() -> None:
    cache = ObjectCache()
    cache.apply(Kind.CONNECTION, None, body_of(Kind.CONNECTION, "c", 3))
    secrets = SecretCache(cache)
    assert secrets.apply("MODIFIED", secret(5, owner=None)) == Key("ns", "c")
    assert secrets.apply("MODIFIED", secret(6, owner=None, uid="nobody")) is None


def test_the_same_version_of_a_secret_wakes_nobody_twice() -> None:
    secrets = SecretCache(ObjectCache())
    assert secrets.apply(None, secret(5)) == Key("ns", "c")
    assert secrets.apply("ADDED", secret(5)) is None

"""The index names everyone who refers to an object or carries an id, and forgets who no longer does."""

from __future__ import annotations

import pytest

from support.reconcilers.fakes import body_of
from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID, Key, Kind
from toolbox_operator.kube.cache import ObjectCache
from toolbox_operator.reconcile.index import Index

S = (Kind.MCP_SERVER, Key("ns", "s"))


@pytest.fixture
def index() -> Index:
    return Index()


@pytest.fixture
def cache(index: Index) -> ObjectCache:
    cache = ObjectCache()
    cache.listen(index.changed)
    cache.apply(Kind.MCP_SERVER, None, body_of(Kind.MCP_SERVER, "s", 1, spec={"toolboxRef": {"name": "a"}}))
    return cache


def test_an_object_refers_to_what_its_spec_names_and_to_what_it_was_accepted_with(
    cache: ObjectCache, index: Index
) -> None:
    assert index.referrers(Kind.TOOLBOX, Key("ns", "a")) == {S}
    status = {"resolved": {"toolbox": "ns/a"}}
    moved = body_of(Kind.MCP_SERVER, "s", 2, spec={"toolboxRef": {"name": "b"}}, status=status)
    cache.apply(Kind.MCP_SERVER, "MODIFIED", moved)
    assert index.referrers(Kind.TOOLBOX, Key("ns", "a")) == {S}
    assert index.referrers(Kind.TOOLBOX, Key("ns", "b")) == {S}


def test_what_is_gone_refers_to_nothing_and_carries_nothing(cache: ObjectCache, index: Index) -> None:
    body = body_of(Kind.MCP_SERVER, "s", 2)
    assert index.carriers(body["metadata"]["uid"]) == {Key("ns", "s")}
    cache.apply(Kind.MCP_SERVER, "DELETED", body)
    assert index.referrers(Kind.TOOLBOX, Key("ns", "a")) == set()
    assert index.carriers(body["metadata"]["uid"]) == set()


def test_a_server_is_found_by_its_annotation_by_what_status_recorded_and_by_its_uid(
    cache: ObjectCache, index: Index
) -> None:
    noted = {"annotations": {ANNOTATION_INSTANCE_ID: "noted"}}
    body = body_of(Kind.MCP_SERVER, "s", 2, metadata=noted, status={"instanceId": "recorded"})
    cache.apply(Kind.MCP_SERVER, "MODIFIED", body)
    for id_ in ("noted", "recorded", body["metadata"]["uid"]):
        assert index.carriers(id_) == {Key("ns", "s")}

"""A change wakes those it concerns, and nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from support.reconcilers.fakes import Asked, body_of
from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID, Body, Key, Kind
from toolbox_operator.kube.cache import ObjectCache
from toolbox_operator.reconcile.fanout import FanOut
from toolbox_operator.reconcile.index import Index

TBX, MCPS, AMC = Kind.TOOLBOX, Kind.MCP_SERVER, Kind.CONNECTION
T, S, C = (TBX, Key("ns", "t")), (MCPS, Key("ns", "s")), (AMC, Key("ns", "c"))


def toolbox(number: int, **more: Any) -> Body:
    return body_of(TBX, "t", number, **more)


def server(number: int, name: str = "s", **more: Any) -> Body:
    return body_of(MCPS, name, number, spec={"toolboxRef": {"name": "t"}}, **more)


def connection(number: int, **more: Any) -> Body:
    return body_of(AMC, "c", number, spec={"serverRef": {"name": "s", "namespace": "ns"}}, **more)


def followed(asked: Asked) -> ObjectCache:
    """A cache whose changes are told on."""
    cache, index = ObjectCache(), Index()
    cache.listen(index.changed)
    cache.listen(FanOut(asked, index).changed)
    return cache


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def cache(asked: Asked) -> ObjectCache:
    """A toolbox with a server with a connection, all settled."""
    cache = followed(asked)
    cache.apply(TBX, None, toolbox(1))
    cache.apply(MCPS, None, server(2))
    cache.apply(AMC, None, connection(3))
    asked.taken()
    return cache


def test_an_edit_of_a_toolbox_concerns_its_servers_and_their_connections(cache: ObjectCache, asked: Asked) -> None:
    cache.apply(TBX, "MODIFIED", toolbox(9, metadata={"generation": 2}))
    assert asked.taken() == {T, S, C}


def test_an_edit_of_a_server_concerns_both_sides(cache: ObjectCache, asked: Asked) -> None:
    cache.apply(MCPS, "MODIFIED", server(9, metadata={"generation": 2}))
    assert asked.taken() == {T, S, C}


def test_a_count_in_a_servers_status_concerns_nobody_else(cache: ObjectCache, asked: Asked) -> None:
    cache.apply(MCPS, "MODIFIED", server(9, status={"connections": 3}))
    assert asked.taken() == {S}
    cache.apply(MCPS, "MODIFIED", server(10, status={"connections": 3, "sessions": {"open": 1, "max": 10}}))
    assert asked.taken() == {S}


def test_a_count_in_a_toolboxs_status_concerns_nobody_else(cache: ObjectCache, asked: Asked) -> None:
    cache.apply(TBX, "MODIFIED", toolbox(9, status={"servers": 3}))
    assert asked.taken() == {T}


def test_a_connection_that_becomes_connected_concerns_its_server(cache: ObjectCache, asked: Asked) -> None:
    cache.apply(AMC, "MODIFIED", connection(9, status={"phase": "Connected"}))
    assert asked.taken() == {C, S}


def test_a_connection_that_may_be_used_now_concerns_its_server_whatever_its_phase(
    cache: ObjectCache, asked: Asked
) -> None:
    cache.apply(AMC, "MODIFIED", connection(9, status={"phase": "Pending"}))
    asked.taken()
    conditions = [{"type": "Accepted", "status": "True"}, {"type": "Programmed", "status": "True"}]
    cache.apply(AMC, "MODIFIED", connection(10, status={"phase": "Pending", "conditions": conditions}))
    assert asked.taken() == {C, S}


def test_what_becomes_of_a_server_concerns_its_connections_and_not_its_toolbox(
    cache: ObjectCache, asked: Asked
) -> None:
    cache.apply(MCPS, "MODIFIED", server(9, status={"phase": "Active"}))
    assert asked.taken() == {S, C}


def test_a_server_that_was_accepted_on_a_toolbox_concerns_it(cache: ObjectCache, asked: Asked) -> None:
    moved = body_of(MCPS, "s", 9, spec={"toolboxRef": {"name": "x"}}, status={"resolved": {"toolbox": "ns/y"}})
    cache.apply(MCPS, "MODIFIED", moved)
    assert asked.taken() >= {S, (TBX, Key("ns", "x")), (TBX, Key("ns", "y"))}


def test_a_server_that_is_gone_concerns_its_toolbox_and_its_connections(cache: ObjectCache, asked: Asked) -> None:
    cache.apply(MCPS, "DELETED", server(9))
    assert asked.taken() == {T, S, C}


def test_a_reference_to_something_that_does_not_exist_yet_wakes_once_it_does(cache: ObjectCache, asked: Asked) -> None:
    late = body_of(AMC, "late", 20, spec={"serverRef": {"name": "later"}})
    cache.apply(AMC, "ADDED", late)
    asked.taken()
    cache.apply(MCPS, "ADDED", server(21, "later"))
    assert (AMC, Key("ns", "late")) in asked.taken()


def test_the_accepted_reference_counts_beside_an_edited_one(cache: ObjectCache, asked: Asked) -> None:
    moved = body_of(MCPS, "s", 9, spec={"toolboxRef": {"name": "x"}}, status={"resolved": {"toolbox": "ns/t"}})
    cache.apply(MCPS, "MODIFIED", moved)
    asked.taken()
    cache.apply(TBX, "MODIFIED", toolbox(10, metadata={"generation": 2}))
    assert S in asked.taken()


def test_of_two_servers_with_one_instance_id_the_other_wakes_when_one_leaves(asked: Asked) -> None:
    cache = followed(asked)
    same = {"annotations": {ANNOTATION_INSTANCE_ID: "11111111-1111-4111-8111-111111111111"}}
    cache.apply(MCPS, None, server(1, "one", metadata=same))
    cache.apply(MCPS, None, server(2, "two", metadata=same))
    asked.taken()
    cache.apply(MCPS, "DELETED", server(3, "one", metadata=same))
    assert (MCPS, Key("ns", "two")) in asked.taken()


@pytest.mark.parametrize("spec", [None, {}, {"toolboxRef": None}, {"toolboxRef": "t"}, {"toolboxRef": {"name": 5}}])
def test_a_reference_that_cannot_be_read_harms_nobody(spec: Any, asked: Asked) -> None:
    cache = followed(asked)
    cache.apply(MCPS, "ADDED", body_of(MCPS, "broken", 1, spec=spec, status={"resolved": {"toolbox": 7}}))
    assert asked.taken() == {(MCPS, Key("ns", "broken"))}

"""Readers of Secrets and ConfigMaps are brought back when what they read changes, and for nothing else."""

from __future__ import annotations

import pytest

from support.memory import reachable_bytes
from support.reconcilers.fakes import Asked
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.domain.inputs import Ref, Source
from toolbox_operator.reconcile.index import Node
from toolbox_operator.reconcile.sources import Sources, SourceWatch

SECRET, CONFIG = Ref(Source.SECRET, "s"), Ref(Source.CONFIG_MAP, "s")
A: Node = (Kind.MCP_SERVER, Key("ns", "a"))
B: Node = (Kind.MCP_SERVER, Key("ns", "b"))
T: Node = (Kind.TOOLBOX, Key("ns", "a"))


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def sources(asked: Asked) -> Sources:
    return Sources(asked, spread=60.0, uniform=lambda low, high: (low + high) / 2)


def test_a_change_brings_back_everybody_who_reads_it(sources: Sources, asked: Asked) -> None:
    for node in (A, B, T):
        sources.reads(node, [SECRET])
    sources.changed(Source.SECRET, Key("ns", "s"))
    assert asked.taken() == {A, B, T}


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (Source.CONFIG_MAP, Key("ns", "s")),
        (Source.SECRET, Key("other", "s")),
        (Source.SECRET, Key("ns", "other")),
    ],
)
def test_what_nobody_reads_brings_back_nobody(sources: Sources, asked: Asked, source: Source, key: Key) -> None:
    mark = sources.reads(A, [SECRET])
    sources.changed(source, key)
    assert asked.taken() == set()
    assert sources.reads(A, [SECRET]) == mark


def test_values_are_the_newest_for_as_long_as_the_mark_stays(sources: Sources) -> None:
    mark = sources.reads(A, [SECRET, CONFIG])
    other = sources.reads(B, [CONFIG])
    assert sources.reads(A, [CONFIG, SECRET]) == mark
    sources.changed(Source.SECRET, Key("ns", "s"))
    assert sources.reads(A, [SECRET, CONFIG]) != mark
    assert sources.reads(B, [CONFIG]) == other


def test_a_mark_never_comes_back(sources: Sources) -> None:
    marks = {sources.reads(A, [SECRET])}
    for refs in ([CONFIG], [SECRET, CONFIG], [SECRET]):
        marks.add(sources.reads(A, refs))
    sources.forget(A)
    marks.add(sources.reads(A, [SECRET]))
    assert len(marks) == 5


def test_a_reader_that_reads_something_else_is_brought_back_for_that_only(sources: Sources, asked: Asked) -> None:
    sources.reads(A, [SECRET])
    sources.reads(A, [CONFIG])
    sources.changed(Source.SECRET, Key("ns", "s"))
    assert asked.taken() == set()
    sources.changed(Source.CONFIG_MAP, Key("ns", "s"))
    assert asked.taken() == {A}


def test_nothing_is_kept_of_readers_that_are_gone_or_read_nothing(sources: Sources, asked: Asked) -> None:
    sources.reads(A, [SECRET])
    sources.reads(B, [SECRET])
    assert len(sources) == 1
    sources.forget(A)
    assert sources.reads(B, []) == 0
    assert len(sources) == 0
    sources.changed(Source.SECRET, Key("ns", "s"))
    sources.missed(Source.SECRET)
    assert (asked.now, asked.later) == ([], [])


def test_after_a_gap_the_readers_of_that_kind_read_again_spread_over_time(sources: Sources, asked: Asked) -> None:
    marks = sources.reads(A, [SECRET, CONFIG]), sources.reads(B, [CONFIG])
    SourceWatch(sources, Source.SECRET).begun(())
    assert asked.later == [(*A, 30.0)]
    assert asked.now == []
    assert sources.reads(A, [SECRET, CONFIG]) != marks[0]
    assert sources.reads(B, [CONFIG]) == marks[1]


def test_every_event_of_the_watch_counts_as_a_change(sources: Sources, asked: Asked) -> None:
    sources.reads(A, [SECRET])
    watch = SourceWatch(sources, Source.SECRET)
    for type_ in ("ADDED", "MODIFIED", "DELETED"):
        watch.changed(type_, {"metadata": {"namespace": "ns", "name": "s"}})
        assert asked.taken() == {A}


def test_what_five_thousand_servers_read_takes_few_mebibytes(asked: Asked) -> None:
    nodes: list[Node] = [(Kind.MCP_SERVER, Key(f"team-{n % 50}", f"server-{n:04}")) for n in range(5_000)]
    sources = Sources(asked, spread=60.0)
    for kind, key in nodes:
        sources.reads((kind, key), [Ref(Source.SECRET, f"{key.name}-token"), Ref(Source.CONFIG_MAP, key.name)])
    for number in range(100_000):
        # Secrets that are nobody's business here leave nothing behind.
        sources.changed(Source.SECRET, Key("elsewhere", f"release-{number}"))
    assert len(sources) == 10_000
    assert reachable_bytes(sources) < 8 * 2**20
    assert asked.now == []

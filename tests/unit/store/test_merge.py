from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.record.rows import CLUSTER, OTHER_CLUSTER, World, new_id
from toolbox_operator.store.api import InstanceRow, agent_id
from toolbox_operator.store.decide import Fence, Stored, decide
from toolbox_operator.store.pending import Change, Closing
from toolbox_operator.store.records import Record, canonical, merge, records_of, storable

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WORLD = World()


def record(
    generation: int, seen: tuple[int, int] | None, *, status: str | None = None, uid: str | None = None
) -> Record:
    """Spec columns tell the generation, observed ones and the verdict the observation."""
    row = WORLD.instance(
        generation, seen, image=f"image:{generation}", tools=[f"{seen}"], status=status or f"seen {seen}", uid=uid
    )
    return of(row)


def of(row: InstanceRow) -> Record:
    return records_of(row, CLUSTER)[-1]


rows = st.lists(st.tuples(st.integers(1, 4), st.tuples(st.integers(1, 3), st.integers(1, 4))), min_size=1, max_size=4)


@settings(deadline=None)  # how loaded the machine is says nothing about the rules
@given(rows)
def test_every_order_of_arrival_ends_in_the_same_record(arrivals: list[tuple[int, tuple[int, int]]]) -> None:
    ends: list[Record] = []
    for order in itertools.permutations(arrivals):
        merged = record(*order[0])
        for arrival in order[1:]:
            merged = merge(merged, record(*arrival), direct=True)
        ends.append(merged)
    generation = max(generation for generation, _ in arrivals)
    seen = max(seen for _, seen in arrivals)
    assert all(end == ends[0] for end in ends)
    assert (ends[0].generation, ends[0].spec["image"]) == (generation, f"image:{generation}")
    assert ends[0].observed["tools"][0]["name"] == f"{seen}"
    assert ends[0].verdict["status_on_toolbox"] == f"seen {seen}"


@pytest.mark.parametrize(
    ("arriving", "direct", "status"),
    [
        pytest.param(record(2, None, status="unknown"), True, "unknown", id="the operator lost the host"),
        pytest.param(record(1, None, status="unknown"), True, "seen (1, 5)", id="so did one with an older spec"),
        pytest.param(record(2, None, status="pending"), False, "seen (1, 5)", id="a connection's idea of its server"),
        pytest.param(record(3, None, status="pending"), False, "pending", id="the same of a newer spec"),
        pytest.param(record(2, (1, 5), status="x"), True, "x", id="another verdict on the same observation"),
        pytest.param(record(1, (1, 5), status="x"), True, "seen (1, 5)", id="the same from an older spec"),
        pytest.param(record(2, (1, 5), status="x"), False, "seen (1, 5)", id="the same from a connection"),
        pytest.param(record(1, (1, 6), status="x"), False, "x", id="a newer observation, whoever brings it"),
        pytest.param(record(2, (1, 4), status="x"), True, "seen (1, 5)", id="an older observation"),
        pytest.param(record(2, (2, 1), status="x"), True, "x", id="the host restarted"),
    ],
)
def test_whose_status_counts(arriving: Record, direct: bool, status: str) -> None:
    merged = merge(record(2, (1, 5)), arriving, direct=direct)
    assert merged.verdict["status_on_toolbox"] == status


def test_a_status_without_observation_keeps_the_observation_for_comparison() -> None:
    merged = merge(record(1, (1, 5)), record(1, None, status="unknown"), direct=True)
    assert merged.observation == record(1, (1, 5)).observation
    assert merged.observed == record(1, (1, 5)).observed


def change(arriving: Record, *, direct: bool = True, closing: Closing | None = None) -> Change:
    return Change(arriving, direct, closing, version=1)


FENCE = Fence(CLUSTER, 5, NOW)
DELETED = Closing(NOW, "deleted")


def stored(*, epoch: int = 5, cluster: str = CLUSTER, closing: Closing | None = None) -> Stored:
    return Stored(record(2, (1, 5)), cluster, epoch, closing)


AGAIN = record(1, (1, 1), uid=new_id())


@pytest.mark.parametrize(
    ("there", "arriving", "accepted"),
    [
        pytest.param(None, change(record(1, None)), True, id="a new row"),
        pytest.param(stored(epoch=4), change(record(2, (1, 6))), True, id="an earlier leader's row"),
        pytest.param(stored(epoch=6), change(record(9, (9, 9))), False, id="a later leader's row"),
        pytest.param(stored(epoch=6), change(record(9, (9, 9)), closing=DELETED), False, id="closing a later leader's"),
        pytest.param(stored(epoch=6, cluster=OTHER_CLUSTER), change(AGAIN), True, id="an id that moved here"),
        pytest.param(stored(cluster=OTHER_CLUSTER), change(AGAIN, direct=False), False, id="the same by hearsay"),
        pytest.param(stored(closing=DELETED), change(record(9, (9, 9))), False, id="a deleted row, same object"),
        pytest.param(stored(closing=DELETED), change(AGAIN), True, id="a deleted row, made anew"),
        pytest.param(stored(closing=DELETED), change(AGAIN, direct=False), False, id="made anew, by hearsay"),
        pytest.param(stored(closing=DELETED), change(record(2, None), closing=DELETED), False, id="closed already"),
        pytest.param(stored(closing=Closing(NOW, "swept")), change(record(2, None)), True, id="a swept row speaks"),
        pytest.param(
            stored(closing=Closing(NOW, "swept")), change(record(2, None), direct=False), False, id="swept, by hearsay"
        ),
        pytest.param(stored(), change(AGAIN, closing=DELETED), False, id="closing an id that is another object's now"),
        pytest.param(stored(), change(record(1, None), closing=DELETED), True, id="closing with an old body"),
    ],
)
def test_what_may_change_a_row(there: Stored | None, arriving: Change, accepted: bool) -> None:
    wanted = decide(there, arriving, FENCE)
    assert (wanted is not None) is accepted
    if wanted is not None:
        assert (wanted.cluster_id, wanted.epoch, wanted.closing) == (CLUSTER, 5, arriving.closing)


def test_an_object_made_anew_starts_over_with_generation_and_observation() -> None:
    wanted = decide(stored(closing=DELETED), change(AGAIN), FENCE)
    assert wanted is not None
    assert wanted.record == AGAIN


def test_a_connection_without_its_server_is_not_inserted() -> None:
    waiting = records_of(WORLD.connection(waiting=True), CLUSTER)[-1]
    assert decide(None, change(waiting), FENCE) is None


def test_rows_become_records_parents_first() -> None:
    toolbox, instance, connection = records_of(WORLD.connection(), CLUSTER)
    assert instance.spec["account_tool_environment_id"] == toolbox.id
    assert connection.spec["mcp_server_instance_id"] == instance.id
    assert connection.agent is not None
    assert connection.agent.id == connection.spec["agent_id"] == agent_id(CLUSTER, "team-a", "research-bot")


def test_what_postgresql_cannot_store_is_replaced_at_every_depth() -> None:
    given_ = {"a\x00": ["\ud800", {"b": float("nan")}, ("x", 1, True, None)], "t": NOW}
    assert storable(given_) == {"a�": ["�", {"b": None}, ["x", 1, True, None]], "t": str(NOW)}


def test_ids_are_spelt_as_postgresql_spells_them() -> None:
    assert canonical(CLUSTER.upper()) == CLUSTER
    assert canonical("no uuid") == "no uuid"

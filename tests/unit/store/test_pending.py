from __future__ import annotations

from datetime import UTC, datetime

from support.record.rows import CLUSTER, World, new_id
from toolbox_operator.store.api import Live, Row
from toolbox_operator.store.pending import Event, Pending
from toolbox_operator.store.records import Kind, records_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NOTHING = Live(frozenset(), frozenset(), frozenset())


def pending(max_events: int = 10) -> Pending:
    return Pending(max_events)


def submit(pending: Pending, row: Row) -> None:
    pending.submit(records_of(row, CLUSTER), NOW)


def close(pending: Pending, row: Row, reason: str = "deleted") -> None:
    pending.close(records_of(row, CLUSTER), reason, NOW)


def written(pending: Pending) -> None:
    """All that waits is committed."""
    while changes := pending.batch(100):
        pending.confirm(changes)


def states(pending: Pending) -> dict[str, str | None]:
    """Reason of closing, by id, of what waits."""
    return {c.record.id: c.closing.reason if c.closing else None for c in pending.batch(100)}


def event(reason: str) -> Event:
    return Event(new_id(), NOW, "Toolbox", new_id(), "Normal", reason, "")


def test_parents_come_before_children_whatever_the_size_of_a_batch() -> None:
    waiting, worlds = pending(), [World(f"ns-{i}") for i in range(3)]
    for world in worlds:
        submit(waiting, world.connection())
    kinds: list[Kind] = []
    while changes := waiting.batch(2):
        kinds += [change.record.kind for change in changes]
        waiting.confirm(changes)
    assert kinds == [Kind.TOOLBOX] * 3 + [Kind.INSTANCE] * 3 + [Kind.CONNECTION] * 3


def test_only_the_newest_row_of_an_object_waits() -> None:
    waiting, world = pending(), World()
    for generation in range(1, 50):
        submit(waiting, world.toolbox(generation))
    (change,) = waiting.batch(10)
    assert change.record.generation == 49


def test_a_change_made_while_a_batch_is_written_still_waits() -> None:
    waiting, world = pending(), World()
    submit(waiting, world.toolbox(1))
    changes = waiting.batch(10)
    submit(waiting, world.toolbox(2))
    waiting.confirm(changes)
    assert [change.record.generation for change in waiting.batch(10)] == [2]


def test_an_equal_row_waits_no_more() -> None:
    waiting, world = pending(), World()
    submit(waiting, world.instance(1, (1, 1)))
    written(waiting)
    submit(waiting, world.instance(1, (1, 1)))
    assert waiting.backlog == 0


def test_a_closed_object_is_forgotten_once_a_later_list_does_not_have_it() -> None:
    waiting, world = pending(), World()
    submit(waiting, world.toolbox())
    close(waiting, world.toolbox())
    assert states(waiting) == {world.toolbox_id: "deleted"}
    written(waiting)
    waiting.sweep(NOTHING, NOW)  # may have been listed before
    submit(waiting, world.toolbox(9))
    assert states(waiting) == {}
    waiting.sweep(NOTHING, NOW)
    submit(waiting, world.toolbox(9))  # stale: PostgreSQL will refuse it, here nothing is known of it any more
    assert states(waiting) == {world.toolbox_id: None}


def test_a_restored_database_is_told_again_what_was_closed_and_what_was_swept() -> None:
    waiting, world, other = pending(), World(), World("other")
    submit(waiting, world.toolbox())
    submit(waiting, other.toolbox())
    listed = Live(frozenset({world.toolbox_id, other.toolbox_id}), frozenset(), frozenset())
    waiting.sweep(listed, NOW)
    close(waiting, world.toolbox())
    written(waiting)
    sweep = waiting.due_sweep()
    waiting.confirm((), sweep=sweep)
    assert waiting.backlog == 0
    waiting.rewrite()
    assert states(waiting) == {world.toolbox_id: "deleted", other.toolbox_id: None}
    assert waiting.due_sweep() == sweep


def test_closing_stands_against_stale_submits_of_the_same_object() -> None:
    waiting, world = pending(), World()
    close(waiting, world.instance(1))
    submit(waiting, world.instance(2))
    submit(waiting, world.connection())
    assert states(waiting)[world.instance_id] == "deleted"


def test_closing_is_late_when_the_id_belongs_to_a_new_object() -> None:
    waiting, world = pending(), World()
    submit(waiting, world.instance(1, uid=new_id()))
    close(waiting, world.instance(7))
    assert states(waiting)[world.instance_id] is None


def test_another_id_under_the_same_name_replaces_the_one_before() -> None:
    waiting, old, new = pending(), World(), World()
    submit(waiting, old.instance())
    submit(waiting, new.instance())
    submit(waiting, old.connection())  # its server is not the one of that name any more
    assert states(waiting)[old.instance_id] == "replaced"
    assert states(waiting)[new.instance_id] is None


def test_hearsay_about_an_older_object_of_the_same_name_is_dropped() -> None:
    waiting, old, new = pending(), World(), World()
    submit(waiting, new.instance())
    submit(waiting, new.toolbox())
    submit(waiting, old.connection())
    assert old.instance_id not in states(waiting)
    assert states(waiting)[new.instance_id] is None


def test_a_sweep_spares_what_was_seen_since_the_sweep_before() -> None:
    waiting, world = pending(), World()
    submit(waiting, world.toolbox())
    waiting.sweep(NOTHING, NOW)
    assert states(waiting) == {world.toolbox_id: None}
    waiting.sweep(NOTHING, NOW)
    assert states(waiting) == {world.toolbox_id: "swept"}
    submit(waiting, world.toolbox())
    assert states(waiting) == {world.toolbox_id: None}


def test_the_sweep_of_the_database_keeps_what_is_listed_and_what_is_known() -> None:
    waiting, known = pending(), World()
    submit(waiting, known.toolbox())
    waiting.sweep(Live(frozenset({"listed"}), frozenset(), frozenset()), NOW)
    sweep = waiting.due_sweep()
    assert sweep is not None
    assert sweep.keep[Kind.TOOLBOX] == {"listed", known.toolbox_id}
    waiting.sweep(NOTHING, NOW)  # a newer one meanwhile
    waiting.confirm((), sweep=sweep)
    assert waiting.due_sweep() is not None


def test_what_was_refused_waits_for_a_change_or_for_another_try() -> None:
    waiting, world = pending(), World()
    submit(waiting, world.toolbox())
    waiting.refuse(waiting.batch(1)[0])
    assert (waiting.backlog, waiting.refused) == (0, 1)
    waiting.retry_refused()
    assert (waiting.backlog, waiting.refused) == (1, 0)
    waiting.refuse(waiting.batch(1)[0])
    submit(waiting, world.toolbox(2))
    assert (waiting.backlog, waiting.refused) == (1, 0)


def test_the_row_of_an_object_that_vanished_is_closed_by_its_name_and_one_that_was_let_go_keeps_its_reason() -> None:
    waiting, world = pending(), World()
    server = world.instance()
    submit(waiting, server)
    waiting.vanished(Kind.INSTANCE, server.namespace, "another", NOW)
    assert states(waiting)[server.id] is None
    waiting.vanished(Kind.INSTANCE, server.namespace, server.name, NOW)
    assert states(waiting)[server.id] == "swept"
    submit(waiting, server)
    assert states(waiting)[server.id] is None, "it was there after all"
    close(waiting, server)
    waiting.vanished(Kind.INSTANCE, server.namespace, server.name, NOW)
    assert states(waiting)[server.id] == "deleted"


def test_after_an_outage_everything_known_is_written_again() -> None:
    waiting, world = pending(), World()
    submit(waiting, world.connection())
    written(waiting)
    waiting.rewrite()
    assert waiting.backlog == 3


def test_events_beyond_the_bound_push_out_the_oldest_and_are_counted() -> None:
    waiting = pending(max_events=2)
    for reason in ("a", "b", "c"):
        waiting.log(event(reason))
    assert [e.reason for e in waiting.events(10)] == ["b", "c"]
    assert waiting.dropped_events == 1
    taken = waiting.events(10)
    waiting.log(event("d"))  # pushes out one that is being written
    waiting.confirm((), events=taken)
    assert [e.reason for e in waiting.events(10)] == ["d"]

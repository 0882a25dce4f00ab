"""The rules of the work queue, by every order of operations Hypothesis can think of."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from toolbox_operator.api.meta import Key
from toolbox_operator.reconcile.queue import KeyQueue

KEYS = [Key("ns", name) for name in ("a", "b", "c", "far-1", "far-2", "far-3")]
LIMIT = 2
keys = st.sampled_from(KEYS)


def share_of(key: Key) -> str | None:
    """Those named far share a host."""
    return "far" if key.name.startswith("far") else None


class QueueMachine(RuleBasedStateMachine):
    """A model that says of each key when it must run next, if at all."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = KeyQueue(share_of, LIMIT)
        self.now = 0.0
        self.due: dict[Key, float] = {}
        self.running: set[Key] = set()
        self.again: set[Key] = set()

    @rule(key=keys)
    def add(self, key: Key) -> None:
        self.queue.add(key)
        self.due.pop(key, None)
        if key in self.running:
            self.again.add(key)
        else:
            self.due[key] = 0.0

    @rule(key=keys, seconds=st.integers(min_value=0, max_value=30))
    def add_later(self, key: Key, seconds: int) -> None:
        when = self.now + seconds
        self.queue.add_at(key, when)
        if key not in self.again:
            self.due[key] = min(when, self.due.get(key, when))

    @rule(seconds=st.integers(min_value=1, max_value=20))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def pop(self) -> None:
        key = self.queue.pop(self.now)
        # What came due while its key runs is a wish for another run.
        for late in [key for key, when in self.due.items() if when <= self.now and key in self.running]:
            del self.due[late]
            self.again.add(late)
        taken = sum(share_of(key) is not None for key in self.running)
        ready = {key for key, when in self.due.items() if when <= self.now and (share_of(key) is None or taken < LIMIT)}
        if key is None:
            assert not ready
            return
        assert key in ready, "a key ran too early, twice at once, or without being asked for"
        del self.due[key]
        self.running.add(key)

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.queue.done(key)
        self.running.discard(key)
        if key in self.again:
            self.again.discard(key)
            self.due[key] = 0.0

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.queue.running == len(self.running)
        assert sum(share_of(key) is not None for key in self.running) <= LIMIT
        earliest = self.queue.next_due()
        waiting = [when for when in self.due.values() if when > self.now]
        if waiting:
            assert earliest is not None and earliest <= min(waiting)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_key_added_often_runs_once() -> None:
    queue = KeyQueue()
    for _ in range(5):
        queue.add(KEYS[0])
    assert queue.pop(0.0) == KEYS[0]
    queue.done(KEYS[0])
    assert queue.pop(0.0) is None


def test_a_far_date_asked_for_again_and_again_takes_no_memory() -> None:
    queue = KeyQueue()
    for turn in range(2000):
        queue.add(KEYS[0])
        assert queue.pop(0.0) == KEYS[0]
        queue.done(KEYS[0])
        queue.add_at(KEYS[0], 1e9 + turn)
        queue.add_at(KEYS[1], 1e9)
    assert queue.planned < 200
    assert queue.delayed == 2
    assert queue.next_due() == 1e9


def test_a_key_added_while_it_runs_runs_once_more_and_never_beside_itself() -> None:
    queue = KeyQueue()
    queue.add(KEYS[0])
    assert queue.pop(0.0) == KEYS[0]
    queue.add(KEYS[0])
    queue.add(KEYS[0])
    assert queue.pop(0.0) is None
    queue.done(KEYS[0])
    assert queue.pop(0.0) == KEYS[0]
    queue.done(KEYS[0])
    assert queue.pop(0.0) is None


def test_a_new_event_beats_a_back_off() -> None:
    queue = KeyQueue()
    queue.add_at(KEYS[0], 30.0)
    queue.add(KEYS[0])
    assert queue.pop(1.0) == KEYS[0]
    queue.done(KEYS[0])
    assert queue.pop(31.0) is None, "the delay that was beaten came true all the same"


def test_keys_are_served_in_the_order_they_came() -> None:
    queue = KeyQueue()
    for key in KEYS:
        queue.add(key)
    assert [queue.pop(0.0) for _ in KEYS] == KEYS


def test_a_share_that_is_taken_holds_up_only_its_own_keys() -> None:
    queue = KeyQueue(share_of, 1)
    for key in (KEYS[3], KEYS[4], KEYS[5], KEYS[0], KEYS[1]):
        queue.add(key)
    assert [queue.pop(0.0) for _ in range(4)] == [KEYS[3], KEYS[0], KEYS[1], None]
    assert (queue.aside, queue.ready, len(queue)) == (2, False, 2)
    queue.done(KEYS[3])
    assert queue.ready
    assert queue.pop(0.0) == KEYS[4], "in the order in which they came"
    assert queue.pop(0.0) is None


def test_a_key_that_changes_its_share_while_it_waits_leaves_nobody_behind() -> None:
    shares: dict[Key, str] = dict.fromkeys(KEYS[3:], "far")
    queue = KeyQueue(shares.get, 1)
    for key in KEYS[3:]:
        queue.add(key)
    assert queue.pop(0.0) == KEYS[3]
    assert queue.pop(0.0) is None
    del shares[KEYS[4]]
    queue.done(KEYS[3])
    assert queue.pop(0.0) == KEYS[4]
    queue.done(KEYS[4])
    assert queue.pop(0.0) == KEYS[5]
    queue.done(KEYS[5])
    assert (queue.aside, queue.running, len(queue)) == (0, 0, 0)

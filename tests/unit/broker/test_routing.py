"""Where messages go, whatever the order in which they come."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from toolbox_dtma.broker.messages import Id, Message, read
from toolbox_dtma.broker.routing import (
    MAX_KEPT,
    MAX_KEPT_BYTES,
    MAX_LISTENERS,
    MAX_RUNNING,
    Fate,
    IdInUse,
    Place,
    Routes,
    TooMany,
)
from toolbox_dtma.gateway.skimming import run


def message(document: dict[str, Any]) -> Message:
    """A message out of its members."""
    return run(read(json.dumps({"jsonrpc": "2.0", **document}).encode())).messages[0]


def request(id: Any, token: Any = None) -> Message:
    """A call, with a progress token if one is given."""
    params = {} if token is None else {"params": {"_meta": {"progressToken": token}}}
    return message({"id": id, "method": "tools/call", **params})


def answer(id: Any) -> Message:
    """Its answer."""
    return message({"id": id, "result": {}})


def progress(token: Any) -> Message:
    """How far it has come."""
    return message({"method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})


LOG = message({"method": "notifications/message", "params": {}})
ASKS = message({"id": 1, "method": "sampling/createMessage", "params": {}})


def routes() -> Routes:
    """Of a session whose handshake is done."""
    return Routes(begun=True)


def test_answers_go_to_the_post_that_asked_and_end_it() -> None:
    table = routes()
    table.begin(1, [request("a")])
    table.begin(2, [request("b")])
    assert table.place(answer("b")) == Place(Fate.SENT, 2, last=True)
    assert table.place(answer("a")) == Place(Fate.SENT, 1, last=True)
    assert not table.attended


def test_a_batch_is_ended_by_its_last_answer() -> None:
    table = routes()
    table.begin(1, [request(1), request("1"), request(2)])
    assert [table.place(answer(id)).last for id in ("1", 2, 1)] == [False, False, True]


def test_progress_goes_to_the_post_that_carried_its_token_also_while_somebody_listens() -> None:
    table = routes()
    table.listen(9)
    table.begin(1, [request("a", "t")])
    table.begin(2, [request("b", 7)])
    assert table.place(progress(7)) == Place(Fate.SENT, 2)
    assert table.place(progress("t")) == Place(Fate.SENT, 1)
    assert table.place(progress("7")) == Place(Fate.SENT, 9)
    table.place(answer("a"))
    assert table.place(progress("t")) == Place(Fate.SENT, 9)


def test_everything_else_goes_to_the_newest_listener_else_to_the_oldest_post_else_it_waits() -> None:
    table = routes()
    assert table.place(LOG).fate is Fate.KEPT
    table.begin(1, [request("a")])
    assert table.take_kept(1) == [LOG.raw]
    table.begin(2, [request("b")])
    assert table.place(ASKS) == Place(Fate.SENT, 1)
    table.listen(3)
    table.listen(4)
    assert table.place(LOG) == Place(Fate.SENT, 4)
    table.leave(4)
    assert table.place(LOG) == Place(Fate.SENT, 3)
    table.leave(3)
    table.leave(1)
    assert table.place(LOG) == Place(Fate.SENT, 2)


def test_before_the_handshake_is_done_its_answer_is_all_that_its_post_gets() -> None:
    table = Routes()
    table.begin(1, [request("init", "t")])
    assert table.place(LOG).fate is Fate.KEPT
    assert table.take_kept(1) == []
    assert table.place(answer("init")) == Place(Fate.SENT, 1, last=True)
    table.begun = True
    table.listen(2)
    assert table.take_kept(2) == [LOG.raw]


def test_what_waits_is_bounded_and_the_oldest_goes_first() -> None:
    table = routes()
    logs = [message({"method": "notifications/message", "params": {"n": n}}) for n in range(MAX_KEPT + 3)]
    for each in logs:
        table.place(each)
    assert table.dropped == 3
    table.listen(1)
    assert table.take_kept(1) == [each.raw for each in logs[3:]]
    large = message({"method": "notifications/message", "params": {"x": "y" * (MAX_KEPT_BYTES // 2)}})
    for _ in range(3):
        table.leave(1)
        table.place(large)
    assert (table.dropped, table.kept_bytes) == (5, len(large.raw))
    huge = message({"method": "notifications/message", "params": {"x": "y" * (2 * MAX_KEPT_BYTES)}})
    table.place(huge)
    table.listen(2)
    assert table.take_kept(2) == [huge.raw] and table.kept_bytes == 0


def test_the_call_of_a_client_that_hung_up_runs_on_and_its_answer_and_progress_are_dropped() -> None:
    table = routes()
    table.begin(1, [request("a", "t")])
    table.leave(1)
    assert not table.attended and table.is_running("a")
    with pytest.raises(IdInUse):
        table.begin(2, [request("a")])
    assert table.place(progress("t")).fate is Fate.DROPPED
    assert table.place(answer("a")).fate is Fate.DROPPED
    table.begin(2, [request("a")])
    assert table.place(answer("a")) == Place(Fate.SENT, 2, last=True)


def test_an_id_is_used_once_at_a_time() -> None:
    table = routes()
    table.begin(1, [request(1)])
    for again in ([request(1)], [request(1.0)], [request(2), request(2)]):
        with pytest.raises(IdInUse):
            table.begin(2, again)
    table.begin(2, [request("1")])
    table.undo(1)
    table.begin(3, [request(1)])


def test_what_runs_and_who_listens_is_bounded() -> None:
    table = routes()
    for number in range(MAX_RUNNING):
        table.begin(number, [request(number)])
        table.leave(number)
    with pytest.raises(TooMany):
        table.begin(-1, [request(-1)])
    for number in range(MAX_LISTENERS):
        table.listen(number)
    with pytest.raises(TooMany):
        table.listen(-1)


def test_an_answer_that_nobody_asked_for_is_dropped() -> None:
    table = routes()
    table.listen(1)
    assert table.place(answer("a")).fate is Fate.DROPPED
    assert table.place(message({"id": None, "error": {}})).fate is Fate.DROPPED
    assert table.dropped == 2


IDS = st.sampled_from([1, 2, "1", "a", 3])


class Interleavings(RuleBasedStateMachine):
    """Any order of requests, answers, progress, hang-ups and streams: each message goes where its owner reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = routes()
        self.next = 0
        self.running: dict[Id, tuple[int, Id | None]] = {}
        self.open: dict[int, set[Id]] = {}
        self.listeners: list[int] = []
        self.kept: list[bytes] = []

    @initialize()
    def begin(self) -> None:
        """Nothing runs."""

    @rule(ids=st.lists(IDS, min_size=1, max_size=3, unique=True), tokens=st.booleans())
    def post(self, ids: list[Id], tokens: bool) -> None:
        self.next += 1
        requests = [request(id, f"t{id!r}" if tokens else None) for id in ids]
        if any(id in self.running for id in ids):
            with pytest.raises(IdInUse):
                self.table.begin(self.next, requests)
            return
        self.table.begin(self.next, requests)
        self.open[self.next] = set(ids)
        self.running.update({id: (self.next, f"t{id!r}" if tokens else None) for id in ids})
        expected = [] if self.listeners else self.kept
        assert self.table.take_kept(self.next) == expected
        self.kept = self.kept if self.listeners else []

    @rule(id=IDS)
    def answered(self, id: Id) -> None:
        stream, _ = self.running.pop(id, (0, None))
        place = self.table.place(answer(id))
        if stream not in self.open:
            assert place.fate is Fate.DROPPED
            return
        self.open[stream].discard(id)
        assert place == Place(Fate.SENT, stream, last=not self.open[stream])
        if not self.open[stream]:
            del self.open[stream]

    @rule(id=IDS)
    def progressed(self, id: Id) -> None:
        stream, token = self.running.get(id, (0, None))
        place = self.table.place(progress(f"t{id!r}"))
        if token is None:
            self._elsewhere(place, progress(f"t{id!r}").raw)
        elif stream in self.open:
            assert place == Place(Fate.SENT, stream)
        else:
            assert place.fate is Fate.DROPPED

    @rule(said=st.sampled_from([LOG, ASKS]))
    def said(self, said: Message) -> None:
        self._elsewhere(self.table.place(said), said.raw)

    def _elsewhere(self, place: Place, raw: bytes) -> None:
        if self.listeners:
            assert place == Place(Fate.SENT, self.listeners[-1])
        elif self.open:
            assert place == Place(Fate.SENT, min(self.open))
        else:
            assert place.fate is Fate.KEPT
            self.kept.append(raw)

    @rule()
    def listen(self) -> None:
        if len(self.listeners) < MAX_LISTENERS:
            self.next += 1
            self.table.listen(self.next)
            self.listeners.append(self.next)
            assert self.table.take_kept(self.next) == self.kept
            self.kept = []

    @precondition(lambda self: self.open or self.listeners)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from([*self.open, *self.listeners]))
        self.table.leave(stream)
        self.open.pop(stream, None)
        self.listeners = [each for each in self.listeners if each != stream]

    @invariant()
    def attended_while_a_post_is_open(self) -> None:
        assert self.table.attended == bool(self.open)
        assert all(self.table.waiting(stream) == ids for stream, ids in self.open.items())


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

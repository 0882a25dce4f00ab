"""Which request of a shared process a message belongs to, whatever ids its clients have chosen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from toolbox_dtma.broker.calls import Call, Calls, Delivery
from toolbox_dtma.broker.rewriting import SUBSCRIPTION_META, Marked, read
from toolbox_dtma.broker.routing import MAX_RUNNING, TooMany
from toolbox_dtma.gateway.skimming import run

LISTEN = "subscriptions/listen"


def asked(id: Any, method: str = "tools/call", **meta: Any) -> Marked:
    """A client's request."""
    document = {"jsonrpc": "2.0", "id": id, "method": method, "params": {"_meta": meta}}
    return run(read(json.dumps(document).encode(), of_client=True))


def said(document: Any) -> Marked:
    """A process's message."""
    return run(read(json.dumps({"jsonrpc": "2.0", **document}).encode(), of_client=False))


def note(name: str, **params: Any) -> Marked:
    """A process's notification."""
    return said({"method": f"notifications/{name}", "params": params})


def on(subscription: Any, name: str = "tools/list_changed") -> Marked:
    """One that belongs to a subscription."""
    return note(name, _meta={SUBSCRIPTION_META: subscription})


def delivered(calls: Calls, message: Marked) -> tuple[Call, Any]:
    """Whose it is, and what that client gets."""
    delivery = calls.place(message)
    assert delivery is not None and delivery.raw is not None
    return delivery.call, json.loads(delivery.raw)


def test_equal_ids_are_different_requests_to_the_process_and_come_back_as_they_were() -> None:
    calls = Calls()
    begun = [calls.begin(asked(id, progressToken=id)) for id in (1, 1, "1", 1)]
    numbers = [json.loads(line)["id"] for _, line in begun]
    assert len(set(numbers)) == 4
    for call, line in begun:
        assert json.loads(line)["params"]["_meta"]["progressToken"] == call.number == json.loads(line)["id"]
    for call, _ in reversed(begun):
        whose, shown = delivered(calls, note("progress", progressToken=call.number, progress=1))
        assert whose is call and json.dumps(shown["params"]["progressToken"]).encode() == call.token
        whose, shown = delivered(calls, said({"id": call.number, "result": {"n": call.number}}))
        assert whose is call and json.dumps(shown["id"]).encode() == call.id and shown["result"] == {"n": call.number}
    assert not calls.attended and not calls.dropped


def test_a_subscription_gets_what_names_it_and_its_own_id() -> None:
    calls = Calls()
    (one, _), (two, _) = calls.begin(asked("a", LISTEN)), calls.begin(asked("a", LISTEN))
    for call in (two, one):
        for name in ("subscriptions/acknowledged", "tools/list_changed", "resources/updated", "some/extension"):
            whose, shown = delivered(calls, on(call.number, name))
            assert whose is call and shown["params"]["_meta"] == {SUBSCRIPTION_META: "a"}
    ended = said({"id": two.number, "result": {"_meta": {SUBSCRIPTION_META: two.number}}})
    assert delivered(calls, ended)[1] == {"jsonrpc": "2.0", "id": "a", "result": {"_meta": {SUBSCRIPTION_META: "a"}}}
    # A server may also tear it down with a cancellation; over HTTP that is the end of the stream.
    assert calls.place(note("cancelled", requestId=one.number)) == Delivery(one, None, last=True)
    assert calls.running == () and not calls.dropped


def test_what_belongs_to_nobody_is_dropped_and_counted() -> None:
    calls = Calls()
    call, _ = calls.begin(asked(1, progressToken="t"))
    plain, _ = calls.begin(asked(2))
    messages = [
        said({"id": 99, "result": {}}),
        said({"id": str(call.number), "result": {}}),
        said({"id": None, "error": {"code": -32700, "message": "?"}}),
        said({"id": call.number, "method": "sampling/createMessage", "params": {}}),
        note("message", level="info", data="x"),
        note("progress", progressToken="t", progress=1),
        note("progress", progressToken=plain.number, progress=1),
        note("tools/list_changed"),
        # Not a subscription, and what is no subscription cannot be cancelled by a server.
        on(call.number),
        note("cancelled", requestId=call.number),
        run(
            read(b'{"method":"notifications/progress","params":{"progressToken":1,"progressToken":1}}', of_client=False)
        ),
    ]
    assert [calls.place(message) for message in messages] == [None] * len(messages)
    assert calls.dropped == len(messages) and len(calls.running) == 2


def test_an_answer_after_the_client_hung_up_is_nobodys() -> None:
    calls = Calls()
    call, _ = calls.begin(asked(1))
    assert calls.leave(call) and not calls.leave(call)
    again, _ = calls.begin(asked(1))
    assert again.number != call.number
    assert calls.place(said({"id": call.number, "result": {}})) is None
    assert delivered(calls, said({"id": again.number, "result": {}}))[0] is again


@pytest.mark.parametrize(
    ("code", "status"),
    [(-32601, 404), (-32602, 400), (-32600, 400), (-32700, 400), (-32020, 400), (-32021, 400), (-32022, 400),
     (-32603, 200), (-32000, 200), (7, 200), ("-32601", 200), (None, 200)],
)  # fmt: skip
def test_an_error_has_the_status_that_the_revision_gives_it(code: Any, status: int) -> None:
    calls = Calls()
    call, _ = calls.begin(asked(1))
    delivery = calls.place(said({"id": call.number, "error": {"code": code, "message": "m"}}))
    assert delivery is not None and delivery.status == status


def test_requests_are_bounded_and_a_refused_one_has_not_begun() -> None:
    calls = Calls()
    for _ in range(MAX_RUNNING):
        calls.begin(asked(1))
    with pytest.raises(TooMany):
        calls.begin(asked(1))
    assert len(calls.running) == MAX_RUNNING


def test_who_listens_does_not_wait_for_an_answer() -> None:
    calls = Calls()
    calls.begin(asked(1, LISTEN))
    assert not calls.attended
    calls.begin(asked(2))
    assert calls.attended


class Sharing(RuleBasedStateMachine):
    """Requests of several clients, messages of a process in any order, hang-ups: nobody gets what is another's."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Calls()
        self.mine: dict[int, tuple[Call, Any, Any]] = {}
        """Running requests by number, with the id and the token that their client knows."""
        self.over: list[int] = []

    @rule(id=st.sampled_from([1, "1", "a", 1.5]), token=st.sampled_from([None, 1, "1", "t"]), listens=st.booleans())
    def begin(self, id: Any, token: Any, listens: bool) -> None:
        meta = {} if token is None else {"progressToken": token}
        call, line = self.calls.begin(asked(id, LISTEN if listens else "tools/call", **meta))
        sent = json.loads(line)
        assert sent["id"] == call.number not in (*self.mine, *self.over)
        assert sent["params"]["_meta"] == ({} if token is None else {"progressToken": call.number})
        self.mine[call.number] = (call, id, token)

    @precondition(lambda self: bool(self.mine))
    @rule(data=st.data(), hang_up=st.booleans())
    def end(self, data: st.DataObject, hang_up: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.mine)))
        call, id_, _ = self.mine.pop(number)
        self.over.append(number)
        if hang_up:
            assert self.calls.leave(call)
        else:
            whose, shown = delivered(self.calls, said({"id": number, "result": {}}))
            assert whose is call and (shown["id"], type(shown["id"])) == (id_, type(id_))

    @precondition(lambda self: bool(self.mine))
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.mine)))
        call, _, token = self.mine[number]
        message = note("progress", progressToken=number, progress=1)
        if token is None:
            assert self.calls.place(message) is None
        else:
            whose, shown = delivered(self.calls, message)
            assert whose is call and shown["params"]["progressToken"] == token

    @precondition(lambda self: bool(self.mine))
    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.mine)))
        call, id_, _ = self.mine[number]
        if call.listens:
            whose, shown = delivered(self.calls, on(number))
            assert whose is call and shown["params"]["_meta"][SUBSCRIPTION_META] == id_
        else:
            assert self.calls.place(on(number)) is None

    @precondition(lambda self: bool(self.over))
    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.over))
        for message in (said({"id": number, "result": {}}), note("progress", progressToken=number), on(number)):
            assert self.calls.place(message) is None

    @invariant()
    def running(self) -> None:
        assert [call.number for call in self.calls.running] == sorted(self.mine)
        assert self.calls.attended == any(not call.listens for call, _, _ in self.mine.values())


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)

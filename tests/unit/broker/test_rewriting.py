"""Ids and tokens of stateless requests: replaced on the way in, put back byte for byte on the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.broker.messages import NotAMessage
from toolbox_dtma.broker.rewriting import SUBSCRIPTION_META, Mark, Marked, Unclear, read
from toolbox_dtma.gateway.methods import VERSION_META
from toolbox_dtma.gateway.parsing import Kind
from toolbox_dtma.gateway.skimming import run


def escaped(text: str) -> str:
    """A string with every character as an escape."""
    units = text.encode("utf-16-be", "surrogatepass")
    return '"' + "".join(f"\\u{units[at]:02x}{units[at + 1]:02X}" for at in range(0, len(units), 2)) + '"'


TEXT = st.text(max_size=6, alphabet=st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ['"id":7', "\\", '"', "7", "\u2028", "\U0001f600", '}],"id":1,']
)
STRINGS = TEXT.map(json.dumps) | TEXT.map(lambda text: json.dumps(text, ensure_ascii=False)) | TEXT.map(escaped)
NUMBERS = st.sampled_from(["0", "-0", "7", "-12", "1.50", "1e2", "1E+2", "12345678901234567890123456789", "0.1e-3"])
IDS = STRINGS | NUMBERS
"""As clients write them."""

LOOKALIKES: Any = st.recursive(
    st.sampled_from([1, "x", None, {"id": 1}, {"progressToken": 7}, {"_meta": {"progressToken": 7}}, [{"id": 9}]]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["id", "method", "params", "_meta", "progressToken", "requestId"]), inner)
    ),
    max_leaves=4,
)
SPACES = st.sampled_from(["", " ", "\n", "\r\n", "\t "])


@st.composite
def objects(draw: st.DrawFn, members: dict[str, str]) -> str:
    """An object with these members, whose values are JSON, in any order and with any white space."""
    items = draw(st.permutations(list(members.items())))
    parts: list[str] = []
    for name, value in items:
        key = json.dumps(name) if draw(st.booleans()) else escaped(name)
        before, after, begin, end = (draw(SPACES) for _ in range(4))
        parts.append(f"{before}{key}{after}:{begin}{value}{end}")
    return "{" + draw(SPACES) + ",".join(parts) + "}"


@st.composite
def calls(draw: st.DrawFn) -> tuple[bytes, str, str | None]:
    """A client's request, its id and its progress token."""
    id_, token = draw(IDS), draw(st.none() | IDS)
    meta = {VERSION_META: '"2026-07-28"', "other": json.dumps(draw(LOOKALIKES))}
    if token is not None:
        meta["progressToken"] = token
    arguments = json.dumps(draw(LOOKALIKES))
    params = draw(objects({"name": '"x"', "arguments": arguments, "_meta": draw(objects(meta))}))
    whole = draw(objects({"jsonrpc": '"2.0"', "id": id_, "method": '"tools/call"', "params": params}))
    return (draw(SPACES) + whole + draw(SPACES)).encode(), id_, token


def asked(raw: bytes) -> Marked:
    """A client's message."""
    return run(read(raw, of_client=True))


def said(raw: bytes) -> Marked:
    """A process's message."""
    return run(read(raw, of_client=False))


@given(calls(), st.integers(1, 2**53))
def test_only_id_and_token_change_on_the_way_in(call: tuple[bytes, str, str | None], number: int) -> None:
    raw, id_, token = call
    message = asked(raw)
    assert message.kind is Kind.REQUEST and message.method == "tools/call"
    assert message.written(Mark.ID) == id_.encode()
    assert message.written(Mark.TOKEN) == (None if token is None else token.encode())
    ours = str(number).encode()
    changed = message.replaced({Mark.ID: ours, **({} if token is None else {Mark.TOKEN: ours})})
    before, after = json.loads(raw), json.loads(changed)
    before["id"] = number
    if token is not None:
        before["params"]["_meta"]["progressToken"] = number
    assert after == before
    # And nothing but them: what is left after both are cut out is the same.
    again = asked(changed)
    back = {Mark.ID: id_.encode(), **({} if token is None else {Mark.TOKEN: token.encode()})}
    assert again.replaced(back) == raw


@st.composite
def answers(draw: st.DrawFn, number: int) -> bytes:
    """A process's answer to a request of this number, which it may write in any way that means it."""
    written = draw(st.sampled_from([f"{number}", f"{number}.0", f"{number}e0"]))
    meta = draw(objects({SUBSCRIPTION_META: written, "other": json.dumps(draw(LOOKALIKES))}))
    result = draw(objects({"resultType": '"complete"', "x": json.dumps(draw(LOOKALIKES)), "_meta": meta}))
    return draw(objects({"jsonrpc": '"2.0"', "id": written, "result": result})).encode()


@given(st.data(), IDS, st.integers(1, 1000))
def test_the_clients_own_bytes_are_put_back(data: st.DataObject, id_: str, number: int) -> None:
    raw = data.draw(answers(number))
    message = said(raw)
    assert message.number(Mark.ID) == message.number(Mark.CONCLUDES) == number
    back = message.replaced({Mark.ID: id_.encode(), Mark.CONCLUDES: id_.encode()})
    assert said(back).written(Mark.ID) == said(back).written(Mark.CONCLUDES) == id_.encode()
    theirs, ours = json.loads(raw), json.loads(back)
    theirs["id"] = theirs["result"]["_meta"][SUBSCRIPTION_META] = json.loads(id_)
    assert ours == theirs
    written = message.written(Mark.ID)
    assert written is not None
    assert said(back).replaced({Mark.ID: written, Mark.CONCLUDES: written}) == raw


@pytest.mark.parametrize(
    ("raw", "mark", "written"),
    [
        (b'{"method":"notifications/progress","params":{"progressToken":3,"progress":1}}', Mark.PROGRESS, b"3"),
        (b'{"method":"notifications/cancelled","params":{"requestId":"3"}}', Mark.CANCELS, b'"3"'),
        (b'{"method":"x","params":{"_meta":{"%b":4}}}' % SUBSCRIPTION_META.encode(), Mark.SUBSCRIPTION, b"4"),
        (b'{"id":1,"error":{"code":-32601,"message":"no"}}', Mark.CODE, b"-32601"),
        (b'{"id":1,"method":"tools/call","params":{"name":"n","arguments":{ }}}', Mark.ARGUMENTS, b"{ }"),
    ],
)
def test_each_mark_is_found_where_it_belongs(raw: bytes, mark: Mark, written: bytes) -> None:
    assert said(raw).written(mark) == written
    assert {each for each in Mark if said(raw).written(each) is not None} - {Mark.ID, Mark.NAME} == {mark}


@pytest.mark.parametrize("value", [b"true", b"null", b"[]", b'{"a":1}', b"[1]"])
def test_what_is_neither_a_string_nor_a_number_names_no_request(value: bytes) -> None:
    message = asked(b'{"id":%b,"method":"x","params":{"_meta":{"progressToken":%b}}}' % (value, value))
    assert message.kind is Kind.REQUEST
    assert message.id(Mark.ID) is None and message.id(Mark.TOKEN) is None


@pytest.mark.parametrize(
    "raw",
    [
        b'{"id":1,"id":2,"method":"x"}',
        b'{"id":1,"\\u0069d":2,"method":"x"}',
        b'{"id":1,"method":"x","params":{"_meta":{"progressToken":1,"progressToken":2}}}',
        b'{"id":1,"method":"x","params":{"_meta":{},"_meta":{"progressToken":2}}}',
        b'{"id":1,"method":"x","params":{"_meta":{"a":1,"a":2}}}',
        b'{"id":1,"ID":2,"method":"x"}',
        b'{"id":1,"method":"x","params":{"_meta":{"ProgressToken":2}}}',
        b'{"id":1,"method":"x","params":{"_META":{"progressToken":2}}}',
        b'[{"id":1,"method":"x"}]',
        b'"id"',
        b'{"id":1,"method":7}',
    ],
)
def test_a_client_may_say_nothing_that_servers_read_differently(raw: bytes) -> None:
    with pytest.raises(Unclear):
        asked(raw)


@pytest.mark.parametrize("raw", [b"", b"{", b'{"id":1}x', b'{"id":NaN}', b'{"id":"\xff"}', b"\xef\xbb\xbf{}"])
def test_what_is_not_json_is_no_message(raw: bytes) -> None:
    reading: list[Callable[[bytes], Marked]] = [asked, said]
    for each in reading:
        with pytest.raises(NotAMessage) as refused:
            each(raw)
        assert not isinstance(refused.value, Unclear)


def test_a_process_whose_answer_has_two_ids_is_not_believed_and_a_notification_with_two_tokens_is_nobodys() -> None:
    with pytest.raises(Unclear):
        said(b'{"id":1,"id":2,"result":{}}')
    assert not said(b'{"method":"notifications/progress","params":{"progressToken":1,"progressToken":2}}').clear
    doubled = b'{"id":1,"result":{"_meta":{"%b":1,"%b":1}}}' % ((SUBSCRIPTION_META.encode(),) * 2)
    assert said(doubled).written(Mark.CONCLUDES) is None
    # What has nothing to do with it may be there twice.
    assert said(b'{"id":1,"result":{"a":1,"a":2}}').number(Mark.ID) == 1

"""Documents read in steps are accepted and understood exactly as a decoder accepts and understands them."""

from __future__ import annotations

import gc
import json
import statistics
import time
import unicodedata
from collections.abc import Generator, Mapping
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toolbox_dtma.gateway import strictjson
from toolbox_dtma.gateway.filtering import filter_lists, listings
from toolbox_dtma.gateway.methods import TRACE_META, VERSION_META
from toolbox_dtma.gateway.parsing import (
    MAX_SUBSCRIPTIONS,
    PROTECTED,
    Body,
    BodyRefused,
    parse_body,
    parse_in_steps,
    resembles_protected,
)
from toolbox_dtma.gateway.policy import decide
from toolbox_dtma.gateway.skimming import Document, Steps, is_quick, run
from toolbox_dtma.gateway.strictjson import NotJson, Repeated
from toolbox_dtma.gateway.view import View
from toolbox_dtma.link.messages import Surface
from toolbox_dtma.wire import Expose, NameFilter

WORDS = ["jsonrpc", "id", "method", "params", "result", "name", "uri", "ref", "type", "_meta", "notifications",
         "resourceSubscriptions", "taskId", VERSION_META, TRACE_META, "tools/call", "ping", "Name",
         "na\u200bme", "ＩＤ", "a", "é", "😀"]  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=4)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner),
    max_leaves=30,
)
MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0")},
    optional={
        "id": SCALARS | JSON,
        "method": st.sampled_from(["tools/call", "ping", "x"]) | JSON,
        "params": st.dictionaries(st.sampled_from(WORDS), JSON, max_size=6) | JSON,
        "result": JSON,
    },
)
TOKENS = st.sampled_from(
    ["{", "}", "[", "]", ",", ":", " ", "\n", '"', '"a"', '"a":', '"', "\\", "\\u", "\\ud83d", "\\ude00", "\\n", "\\x",
     "0", "-", "1", "01", "1.", "1.5", "e5", "1e5", "+1", ".5", "true", "false", "null", "NaN", "Infinity", "nul",
     "[]", "{}", "[ ]", '"\\ud83d\\ude00"', '"\\udE00"', "\x00", "\x1f", "\x7f", "é", "\ufeff", '{"id":1,"id":2}', "/"]
)  # fmt: skip
SOUP = st.lists(TOKENS, max_size=14).map("".join)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Documents, and what a few wrong characters make of them."""
    document = draw(JSON | MESSAGES | st.lists(MESSAGES, max_size=3))
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(SOUP) + text[at + draw(st.integers(0, 2)) :]
    return text.encode(errors="surrogatepass")


RAW = texts() | SOUP.map(str.encode) | st.binary(max_size=20)


def skim(raw: bytes) -> None:
    """Reads a whole document."""

    def work() -> Steps[None]:
        document = Document(raw)
        yield from document.check_text()
        end = yield from document.value((yield from document.space(0)), 0)
        if (yield from document.space(end)) != len(raw):
            raise NotJson("more")

    run(work())


def assert_accepted_alike(raw: bytes) -> None:
    try:
        strictjson.loads(raw)
    except NotJson:
        with pytest.raises(NotJson):
            skim(raw)
    else:
        skim(raw)


@given(RAW)
def test_the_same_documents_are_accepted(raw: bytes) -> None:
    assert_accepted_alike(raw)


def looked_at(body: Body) -> list[tuple[Any, ...]]:
    """What policy sees of a body."""

    def part(value: Any, names: Mapping[str, Any] | None) -> Any:
        if isinstance(value, dict) and names:
            members = cast("dict[str, Any]", value)
            inner = {name: part(members[name], names[name]) for name in names if name in members}
            return isinstance(members, Repeated), inner
        if isinstance(value, list) and names == {}:
            return [part(each, None) for each in cast("list[Any]", value)]
        return value if isinstance(value, str | int | float | None) else "something else"

    wanted: dict[str, Any] = {
        **dict.fromkeys(PROTECTED),
        "ref": {"type": None, "name": None, "uri": None},
        "_meta": {VERSION_META: None, TRACE_META: None},
        "notifications": {"resourceSubscriptions": {}},
    }
    return [(m.kind, m.id, m.method, None if m.params is None else part(dict(m.params), wanted)) for m in body.messages]


@given(RAW)
@example(b"0E")
@example(b"[-1.]")
@example(b'{"a":1e+}')
def test_the_same_bodies_are_refused_and_the_others_read_alike(raw: bytes) -> None:
    try:
        whole = parse_body(raw)
    except BodyRefused as refused:
        with pytest.raises(BodyRefused) as again:
            run(parse_in_steps(raw))
        assert (again.value.code, again.value.id) == (refused.code, refused.id)
        return
    stepped = run(parse_in_steps(raw))
    assert stepped.batch == whole.batch
    # NaN and infinite numbers are equal to themselves as text.
    assert repr(looked_at(stepped)) == repr(looked_at(whole))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "get_a", "Name": "hidden"}}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "get_a", "ｎame": "hidden"}}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "get_a"}}),
        ("subscriptions/listen", {"notifications": {}, "Notifications": {"resourceSubscriptions": ["x:hidden"]}}),
        ("subscriptions/listen", {"notifications": {"ResourceSubscriptions": ["x:hidden"]}}),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x:hidden"]}}),
        ("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
        ("tools/call", {"name": "get_a", "Notifications": 1}),
    ],
)
def test_policy_decides_alike_over_both_readings(method: str, params: dict[str, Any]) -> None:
    only = NameFilter(allow=("get_*",))
    view = View.of((Expose(tools=only, prompts=only, resources=only),), Surface(tools=("get_a",), prompts=("get_a",)))
    raw = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, ensure_ascii=False).encode()
    assert decide(run(parse_in_steps(raw)), view) == decide(parse_body(raw), view)


@pytest.mark.parametrize("depth", [63, 64, 65, 5000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("inner", [b"", b"[]", b"[],[]"])
def test_nesting_ends_where_it_ends_for_a_decoder(depth: int, opening: bytes, inner: bytes) -> None:
    if opening != b"[":
        inner = inner.partition(b",")[0] or b"1"
    closing = b"]" if opening == b"[" else b"}"
    assert_accepted_alike(opening * depth + inner + closing * depth)


MIB = 1 << 20


def filled(unit: bytes, size: int = MIB) -> bytes:
    """A call whose argument is an array of this element, of about `size` bytes."""
    inside = b",".join([unit] * (size // (len(unit) + 1)))
    return b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":[' + inside + b"]}}"


DENSE = {
    "numbers": filled(b"0"),
    "empty arrays": filled(b"[]"),
    "arrays": filled(b"[0]"),
    "deep arrays": filled(b"[" * 60 + b"]" * 60),
    "objects": filled(b'{"a":{}}'),
    "short strings": filled(b'""'),
    "escapes": filled(b'"' + b"\\n" * 4000 + b'"'),
    "surrogates": filled(b'"\\ud83d\\ude00"'),
    "white space": filled(b" " * 100_000 + b"1"),
    "one string": filled(b'"' + b"x" * (MIB - 100) + b'"', 2 * MIB),
    "wide characters": filled(b'"' + "é".encode() * (MIB // 2 - 100) + b'"', 2 * MIB),
    "members": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a",'
    + b",".join(b'"%d":0' % n for n in range(100_000))
    + b"}}",
    "strange members": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a",'
    + b",".join(f'"ü{n}":0'.encode() for n in range(60_000))
    + b"}}",
    "messages": b"[" + b",".join([b'{"method":"ping","id":1,"params":{}}'] * 30_000) + b"]",
    "subscriptions": b'{"id":1,"method":"subscriptions/listen","params":{"notifications":{"resourceSubscriptions":['
    + b",".join([b'"a:b"'] * 150_000)
    + b"]}}}",
}


def steps_of(work: Steps[Any]) -> list[float]:
    """CPU seconds of each step."""
    taken: list[float] = []
    while True:
        begin = time.thread_time()
        try:
            next(work)
        except (StopIteration, BodyRefused):
            return [*taken, time.thread_time() - begin]
        taken.append(time.thread_time() - begin)


def a_millisecond() -> float:
    """CPU seconds of what takes a processor of 2020 about a millisecond, on this one as it is now."""
    taken: list[float] = []
    for _ in range(11):
        begin = time.thread_time()
        sum(n * n for n in range(20_000))
        taken.append(time.thread_time() - begin)
    return statistics.median(taken)


@pytest.fixture
def without_collector() -> Generator[None]:
    """A process that has loaded all tests has much that its collector of garbage goes through."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.usefixtures("without_collector")
def test_no_step_of_a_large_document_takes_long(kind: str) -> None:
    raw = DENSE[kind]
    assert not is_quick(raw)
    hidden = listings(View.of((Expose(tools=NameFilter(allow=("a*",))),), None))
    answer = b'{"result":{"tools":[{"name":"ab","x":%b}]}}' % raw
    for steps in (steps_of(parse_in_steps(raw)), steps_of(filter_lists(answer, hidden))):
        assert len(steps) >= 8
        # A step takes about a millisecond; one or two may have memory to move, or meet a cold cache.
        unit = a_millisecond()
        assert sorted(steps)[-3] < 4 * unit, f"{kind}: {[f'{step / unit:.2f}' for step in sorted(steps)[-5:]]}"


def test_only_what_a_decoder_reads_at_once_is_quick() -> None:
    assert is_quick(b'{"a":"' + b"x" * 60_000 + b'"}')
    assert not is_quick(b'{"a":"' + b"x" * 70_000 + b'"}')
    assert not is_quick(b"[" + b"[]," * 500 + b"1]")
    assert not is_quick(b"[" + b"0," * 501 + b"1]")


def test_more_subscriptions_than_are_looked_at_can_be_told() -> None:
    uris = [f"a:{n}" for n in range(MAX_SUBSCRIPTIONS + 500)]
    params = {"notifications": {"resourceSubscriptions": uris}}
    raw = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}).encode()
    found = run(parse_in_steps(raw)).messages[0].params
    assert found is not None and found["notifications"] == {"resourceSubscriptions": uris[: MAX_SUBSCRIPTIONS + 1]}


def test_a_name_that_is_longer_than_any_protected_one_resembles_none() -> None:
    # No character vanishes when it is folded, which is why such names need not be looked at to their end.
    for code in range(0x110000):
        character = chr(code)
        if not 0xD800 <= code < 0xE000 and unicodedata.category(character) not in ("Cc", "Cf"):
            once = unicodedata.normalize("NFKC", character).casefold()
            folded = unicodedata.normalize("NFKC", once)
            assert any(unicodedata.category(c) not in ("Cc", "Cf") for c in folded)
    assert resembles_protected("\u200b" * 5000 + "ｐａｒａｍｓ") and not resembles_protected("ｐａｒａｍｓ" * 2)

"""The gateway reads JSON as RFC 8259 has it, and no server's parser finds another call in what it lets pass."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fuzz import examples
from support.gateway import slow_json
from support.gateway.slow_json import Members, Number, Refused
from toolbox_dtma.gateway import strictjson
from toolbox_dtma.gateway.methods import KNOWN_REQUESTS
from toolbox_dtma.gateway.parsing import BodyRefused, parse_body
from toolbox_dtma.gateway.policy import decide
from toolbox_dtma.gateway.view import View
from toolbox_dtma.link.messages import Surface
from toolbox_dtma.wire import Expose, NameFilter

TOKENS = st.sampled_from(
    [*'{}[]:,"\\', " ", "\n", "\t", "\r", "\v", "\f", "\u00a0", "\u2028", "\ufeff", "\0", "\x1f", "\x7f",
     "true", "false",
     "null", "NaN", "Infinity", "-Infinity", "-", "+1", "0", "01", "1", "-0", ".5", "1.", "1.5", "1e5", "1E+5",
     "1e", "0x1",
     "1_0", "١",
     '"a"', '"\\u0061"', '"\\ud83d\\ude00"', '"\\ud800"', '"\\udc00\\ud800"', '"\\u00zz"', '"\\x41"', "'a'",
     "/**/", "//", "undefined", "9" * 500, "[" * 63, "]" * 63, "[" * 64, "]" * 64, "é", "😀", "\\u005b"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """JSON with something broken, repeated or re-encoded, or text that is almost JSON."""
    if draw(st.booleans()):
        text = "".join(draw(st.lists(TOKENS, max_size=14)))
    else:
        text = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1)))
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(text)))
            text = text[:at] + draw(TOKENS) + text[at + draw(st.integers(0, 2)) :]
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "utf-16-le", "utf-32-be", "utf-8-sig", "latin-1"]))
    raw = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return raw + draw(st.sampled_from([b""] * 8 + [b"\0", b"\xff", b"{}", b"\xed\xa0\x80"]))


def same(found: Any, wanted: Any) -> bool:
    """Whether the reader found what the reference did; the last of repeated members counts, and is marked."""
    if isinstance(wanted, Members):
        members = cast("dict[str, Any]", found)
        last = dict(wanted)
        repeated = len(last) < len(wanted)
        return (
            isinstance(found, dict)
            and isinstance(found, strictjson.Repeated) == repeated
            and members.keys() == last.keys()
            and all(same(members[name], last[name]) for name in last)
        )
    if isinstance(wanted, list):
        elements, other = cast("list[Any]", found), cast("list[Any]", wanted)
        return isinstance(found, list) and len(elements) == len(other) and all(map(same, elements, other))
    if isinstance(wanted, Number):
        if not set(wanted.text) & set(".eE"):
            value = float(wanted.text) if len(wanted.text) > 400 else int(wanted.text)
            return type(found) is type(value) and found == value
        return type(found) is float and found == float(wanted.text)
    return type(found) is type(wanted) and found == wanted


@examples(400)
@given(documents() | st.binary(max_size=40))
def test_what_is_read_and_what_is_refused_is_what_the_rfc_says(raw: bytes) -> None:
    try:
        wanted = slow_json.read(raw)
    except Refused:
        with pytest.raises(strictjson.NotJson):
            strictjson.loads(raw)
    else:
        assert same(strictjson.loads(raw), wanted)


NAMES = NameFilter(allow=("shown*",))
VIEW = View.of(
    (Expose(tools=NAMES, prompts=NAMES, resources=NameFilter(allow=("shown:*",))),),
    Surface(tools=("shown",), prompts=("shown",), resources=("shown:a",)),
)
Reader = Callable[[Iterable[tuple[str, Any]]], dict[str, Any]]


def first_wins(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        members.setdefault(name, value)
    return members


def visible(name: str) -> str:
    return unicodedata.normalize("NFKC", "".join(c for c in name if c.isprintable() and c not in "\u200b\u00ad"))


READERS: dict[str, Reader] = {
    "the last of several": dict,
    "the first of several": first_wins,
    "the last, in any case": lambda pairs: {name.casefold(): value for name, value in pairs},
    "the first, in any case": lambda pairs: first_wins((name.casefold(), value) for name, value in pairs),
    "the last, without what is invisible": lambda pairs: {
        "".join(c for c in name if c.isprintable() and c not in "\u200b\u00ad").casefold(): value
        for name, value in pairs
    },
}
"""How lenient servers read an object."""


def uses(message: Any) -> list[tuple[str, Any]]:
    """(kind, name) of everything that a server would use when it is sent this."""
    if not isinstance(message, dict):
        return []
    members = cast("dict[str, Any]", message)
    method, params = members.get("method"), members.get("params")
    values = cast("dict[str, Any]", params) if isinstance(params, dict) else {}
    if method in ("tools/call", "prompts/get"):
        return [(cast("str", method)[:5], values.get("name"))]
    if method in ("resources/read", "resources/subscribe"):
        return [("uri", values.get("uri"))]
    if method == "completion/complete":
        given_ref = values.get("ref")
        ref = cast("dict[str, Any]", given_ref) if isinstance(given_ref, dict) else {}
        return [("promp", ref.get("name"))] if ref.get("type") == "ref/prompt" else [("uri", ref.get("uri"))]
    if method == "subscriptions/listen":
        given_wish = values.get("notifications")
        wish = cast("dict[str, Any]", given_wish) if isinstance(given_wish, dict) else {}
        uris: Any = wish.get("resourceSubscriptions", wish.get("resourcesubscriptions")) or []
        return [("uri", uri) for uri in (cast("list[Any]", uris) if isinstance(uris, list) else [uris])]
    return [] if method in KNOWN_REQUESTS or "id" not in members else [("method", method)]


def hidden(kind: str, name: Any) -> bool:
    """Whether a use is one that the view does not allow; a name that is no text calls nothing."""
    return kind == "method" or (isinstance(name, str) and name not in ("shown", "shown:a", "shown:b"))


LOOKALIKES: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    str.casefold,
    lambda name: name[0].upper() + name[1:],
    lambda name: name + "\0",
    lambda name: name[:2] + "\u200b" + name[2:],
    lambda name: chr(ord(name[0]) + 0xFEE0) + name[1:],
    lambda name: name.replace("s", "ſ").replace("k", "\u212a"),
)
"""Other spellings of a member's name, and itself once more."""


class Pairs(list[tuple[str, Any]]):
    """An object to be written, members in order."""


def written(value: Any, escape: bool) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{text(name, escape)}:{written(each, escape)}" for name, each in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(each, escape) for each in cast("list[Any]", value)) + "]"
    return text(value, escape) if isinstance(value, str) else json.dumps(value)


def text(value: str, escape: bool) -> str:
    return '"' + "".join(f"\\u{ord(c):04x}" for c in value) + '"' if escape else json.dumps(value, ensure_ascii=False)


HIDDEN: dict[str, Any] = {
    "method": "tools/call",
    "params": Pairs([("name", "hidden"), ("uri", "hidden:a")]),
    "name": "hidden",
    "uri": "hidden:a",
    "type": "ref/prompt",
    "ref": Pairs([("type", "ref/prompt"), ("name", "hidden")]),
    "resourceSubscriptions": ["hidden:a"],
    "notifications": Pairs([("resourceSubscriptions", ["hidden:a"])]),
}
"""What a second member of a name is to smuggle in."""
METHODS = st.sampled_from(
    ["tools/call", "prompts/get", "resources/read", "completion/complete", "subscriptions/listen", "ping", "Tools/Call",
     "vendor/x", "notifications/x"]
)  # fmt: skip


@st.composite
def calls(draw: st.DrawFn) -> bytes:
    """A request that may be made, and members repeated or misspelled that would make it another."""
    ref = Pairs(
        [("type", draw(st.sampled_from(["ref/prompt", "ref/resource"]))), ("name", "shown"), ("uri", "shown:a")]
    )
    wish = Pairs([("resourceSubscriptions", ["shown:a"])])
    params = Pairs([("name", "shown"), ("uri", "shown:b"), ("ref", ref), ("notifications", wish)])
    message = Pairs([("jsonrpc", "2.0"), ("id", 1), ("method", draw(METHODS)), ("params", params)])
    for _ in range(draw(st.integers(0, 2))):
        target = draw(st.sampled_from([message, params, ref, wish]))
        name = draw(st.sampled_from([name for name, _ in target if name in HIDDEN]))
        spelled = draw(st.sampled_from(LOOKALIKES))(name)
        target.insert(draw(st.integers(0, len(target))), (spelled, HIDDEN[name]))
    whole: Any = [message, message] if draw(st.integers(0, 9)) == 0 else message
    return written(whole, draw(st.booleans())).encode()


@examples(400)
@given(calls())
def test_no_parser_finds_a_hidden_use_in_what_is_let_pass(raw: bytes) -> None:
    try:
        denials = decide(parse_body(raw), VIEW)
    except BodyRefused:
        return
    if denials:
        return
    for how, reader in READERS.items():
        document: Any = json.loads(raw, object_pairs_hook=reader)
        for message in cast("list[Any]", document) if isinstance(document, list) else [document]:
            assert [use for use in uses(message) if hidden(*use)] == [], how

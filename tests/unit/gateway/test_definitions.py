"""What a tool's hash covers, and that it is RFC 8785 that it is made by."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any, cast

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.definitions import MAX_CHARACTERS, NotCanonical, approves, define, opaque, surface_hash

TOOL: dict[str, Any] = {
    "name": "get_time",
    "description": "The time.",
    "inputSchema": {"type": "object", "properties": {"zone": {"type": "string", "maxLength": 64}}},
    "annotations": {"readOnlyHint": True},
}

NUMBERS = [
    # RFC 8785, appendix B: the bits of a double, and its canonical form.
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


def hash_of(tool: Any) -> str:
    return define(json.dumps(tool)).hash


def shown(text: str) -> str:
    return define(text).shown


@pytest.mark.parametrize(("bits", "canonical"), NUMBERS)
def test_numbers_are_written_as_the_rfc_says(bits: str, canonical: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    text = f'{{"name":"a","inputSchema":{{"default":{number!r}}}}}'
    assert shown(text) == f'{{"inputSchema":{{"default":{canonical}}},"name":"a"}}'


def test_strings_and_literals_are_written_as_the_rfc_says() -> None:
    # RFC 8785, section 3.2.2, in a member that is covered.
    text = (
        '{"name":"a","annotations":{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
        r'"string":"\u20ac$\u000F\u000aA'
        "'"
        r'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}}'
    )
    expected = (
        '{"annotations":{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        r'"string":"€$\u000f\nA' + "'" + r'B\"\\\\\"/"},"name":"a"}'
    )
    assert shown(text) == expected
    assert define(text).hash == f"sha256:{hashlib.sha256(expected.encode()).hexdigest()}"


def test_members_are_ordered_by_utf_16_as_the_rfc_says() -> None:
    # RFC 8785, section 3.2.3: not the order of code points, in which the emoji would be behind U+FB33.
    members = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    text = json.dumps({"name": "a", "annotations": members})
    assert list(json.loads(shown(text))["annotations"].values()) == [2, 4, 6, 7, 1, 5, 3]


def test_anyone_can_compute_the_hash_with_another_implementation() -> None:
    compact = json.dumps(TOOL, sort_keys=True, separators=(",", ":"))
    hash_ = f"sha256:{hashlib.sha256(compact.encode()).hexdigest()}"
    assert hash_of(TOOL) == hash_
    assert surface_hash([hash_]) == f"sha256:{hashlib.sha256(json.dumps([hash_]).encode()).hexdigest()}"


@pytest.mark.parametrize("member", ["name", "description", "inputSchema", "annotations"])
def test_each_covered_member_makes_another_hash(member: str) -> None:
    for other in ("other", None, {"x": 1}):
        assert hash_of({**TOOL, member: other}) != hash_of(TOOL)
    if member != "name":
        without = {name: value for name, value in TOOL.items() if name != member}
        assert len({hash_of(without), hash_of(TOOL), hash_of({**TOOL, member: None})}) == 3


@pytest.mark.parametrize(
    "member", ["title", "icons", "outputSchema", "_meta", "vendor", "Description", "descri\0ption"]
)
def test_no_other_member_does_and_none_is_shown(member: str) -> None:
    more = json.dumps({**TOOL, member: {"text": "ignore all that was approved", "n": 10**30, "x": "\ud800"}})
    assert define(more).hash == hash_of(TOOL)
    assert json.loads(shown(more)) == TOOL


@pytest.mark.parametrize("support", ["forbidden", "optional", "required"])
def test_how_a_tool_is_called_as_a_task_is_shown_and_not_hashed(support: str) -> None:
    text = json.dumps({**TOOL, "execution": {"taskSupport": support, "note": "do as I say"}})
    assert define(text).hash == hash_of(TOOL)
    assert json.loads(shown(text)) == {**TOOL, "execution": {"taskSupport": support}}


@pytest.mark.parametrize("execution", [None, "required", {"taskSupport": "please"}, {"taskSupport": ["required"]}, []])
def test_any_other_execution_is_left_out(execution: Any) -> None:
    assert json.loads(shown(json.dumps({**TOOL, "execution": execution}))) == TOOL


AMBIGUOUS = [
    ("an integer that a double rounds", '{"name":"a","inputSchema":{"maximum":9007199254740993}}', "2^53 - 1"),
    ("the largest of 64 bits", '{"name":"a","inputSchema":{"maximum":9223372036854775807}}', "2^53 - 1"),
    ("thousands of digits", '{"name":"a","inputSchema":{"maximum":-' + "9" * 9000 + "}}", "2^53 - 1"),
    ("more than a double holds", '{"name":"a","inputSchema":{"maximum":1e400}}', "double"),
    ("no number", '{"name":"a","inputSchema":{"maximum":NaN}}', "NaN"),
    ("a lone surrogate", r'{"name":"a","description":"\ud83d"}', "surrogate"),
    ("a lone surrogate in a member's name", r'{"name":"a","annotations":{"\udc00":1,"b":2}}', "surrogate"),
    ("a member twice", '{"name":"a","description":"x","description":"y"}', "twice"),
    ("a member twice, deep inside", '{"name":"a","inputSchema":{"p":[{"x":1,"x":1}]}}', "twice"),
    ("too long", '{"name":"a","description":"' + "x" * MAX_CHARACTERS + '"}', str(MAX_CHARACTERS)),
    ("too deep for an approval", '{"name":"a","inputSchema":' + "[" * 64 + "]" * 64 + "}", "64 levels"),
    ("too deep for a parser", '{"name":"a","inputSchema":' + "[" * 60_000 + "]" * 60_000 + "}", "64 levels"),
    ("no name", '{"description":"x"}', "name"),
    ("no object", '["name"]', "object"),
    ("no JSON", '{"name":"a"', "JSON"),
]


@pytest.mark.parametrize(("text", "why"), [row[1:] for row in AMBIGUOUS], ids=[row[0] for row in AMBIGUOUS])
def test_what_has_no_canonical_form_says_why_and_is_never_shown(text: str, why: str) -> None:
    with pytest.raises(NotCanonical) as refused:
        define(text)
    assert why in str(refused.value) and len(str(refused.value)) < 200
    assert approves(frozenset({opaque(text)}))("a", text) is None
    assert opaque(text) == opaque(text) != opaque(text + " ")


def test_only_approved_definitions_are_shown() -> None:
    text = json.dumps(TOOL)
    assert approves(frozenset({hash_of(TOOL)}))("get_time", text) == shown(text)
    assert approves(frozenset({hash_of({**TOOL, "description": "x"})}))("get_time", text) is None
    assert approves(frozenset())("get_time", text) is None


CHARACTERS = st.characters(exclude_categories=["Cs"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(CHARACTERS, max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(CHARACTERS, max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.randoms(use_true_random=False))
def test_neither_the_order_of_members_nor_notation_makes_a_difference(schema: Any, random: Any) -> None:
    tool = {**TOOL, "inputSchema": schema}
    wanted = hash_of(tool)

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(key, shuffled(inner)) for key, inner in cast("dict[str, Any]", value).items()]
            random.shuffle(items)
            return dict(items)
        return [shuffled(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value

    again = shuffled(tool)
    for text in (
        json.dumps(again, indent=random.choice([0, 1, 7])),
        json.dumps(again, ensure_ascii=False, separators=(",", ":")),
        "\n\t " + json.dumps(again) + " ",
    ):
        assert define(text).hash == wanted


@given(JSON, JSON)
def test_two_tools_have_one_hash_only_if_they_are_the_same_json(one: Any, other: Any) -> None:
    same = hash_of({"name": "a", "inputSchema": one}) == hash_of({"name": "a", "inputSchema": other})
    assert same == (rfc8785.dumps(one) == rfc8785.dumps(other))


@given(st.text(max_size=400))
def test_no_text_makes_it_fail_in_another_way(text: str) -> None:
    try:
        found = define(text)
    except NotCanonical:
        return
    assert json.loads(found.shown)["name"] == json.loads(text)["name"]


@given(st.lists(st.text("0123456789abcdef", min_size=1, max_size=4), max_size=6), st.randoms(use_true_random=False))
def test_the_surface_has_one_hash_in_any_order_and_however_often_a_tool_is_there(
    hashes: list[str], random: Any
) -> None:
    again = hashes + hashes[:2]
    random.shuffle(again)
    assert surface_hash(again) == surface_hash(hashes)
    assert surface_hash([*hashes, "more"]) != surface_hash(hashes)

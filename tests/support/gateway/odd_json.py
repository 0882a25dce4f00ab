"""Legal JSON as nobody writes it: white space, spellings of numbers and characters, order of members."""

from __future__ import annotations

import json
from typing import Any, cast

from hypothesis import strategies as st

from toolbox_dtma.gateway.methods import KNOWN_REQUESTS

SPACE = st.sampled_from(["", "", "", " ", "\n", "\t", "\r\n", "  "])
NUMBERS = st.sampled_from(["0", "-0", "1.0", "1e2", "1E+2", "1.50e-7", "1e400", "9" * 450, "-1.7976931348623157e308"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcAB"), inner, max_size=3),
    max_leaves=8,
)
METHODS = st.sampled_from(sorted({*KNOWN_REQUESTS, "vendor/x", "notifications/x"} - {"tasks/list"}))


@st.composite
def spelled(draw: st.DrawFn, value: Any) -> str:
    """A value's text."""
    space = draw(SPACE)
    if isinstance(value, dict):
        members = draw(st.permutations(list(cast("dict[str, Any]", value).items())))
        inner = [f"{draw(spelled(name))}:{draw(spelled(each))}" for name, each in members]
        return f"{space}{{{','.join(inner)}{draw(SPACE)}}}"
    if isinstance(value, list):
        return f"{space}[{','.join([draw(spelled(each)) for each in cast('list[Any]', value)])}{draw(SPACE)}]"
    if isinstance(value, str):
        escaped = draw(st.booleans())
        text = json.dumps(value, ensure_ascii=escaped)
        if escaped and value.isalnum() and value.isascii():
            text = '"' + "".join(f"\\u{ord(c):04X}" for c in value) + '"'
        return f"{space}{text.replace('/', draw(st.sampled_from(['/', chr(92) + '/'])))}{draw(SPACE)}"
    if type(value) is int and draw(st.booleans()):
        return space + draw(NUMBERS)
    return f"{space}{json.dumps(value)}{draw(SPACE)}"


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A request, notification, response, or batch of them."""

    def message() -> dict[str, Any]:
        method = draw(METHODS)
        params: dict[str, Any] = {"name": "n", "uri": "a:b", "arguments": draw(VALUES), "_meta": {"x": 1}}
        made: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if draw(st.integers(0, 5)) == 0:
            made = {"jsonrpc": "2.0", "result": draw(VALUES)}
        return made if method.startswith("notifications/") else {**made, "id": draw(st.sampled_from([1, "x", "", 2.5]))}

    whole: Any = [message() for _ in range(draw(st.integers(1, 3)))] if draw(st.integers(0, 4)) == 0 else message()
    return draw(spelled(whole)).encode()

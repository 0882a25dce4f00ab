"""JSON read in steps of bounded length: a whole document is checked, and only what is asked for decoded. Pure.

A document of some hundred kilobytes can take a decoder longer than other requests may wait, and a thread does not
help, since a decoder written in C keeps the interpreter to itself. What is here are generators that yield between
steps; what they accept and what they find is what `strictjson` does (RFC 8259).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar, cast

from toolbox_dtma.gateway.strictjson import BOM, DECODER, MAX_DEPTH, NotJson, Repeated

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that yields between steps, and its result."""

LENIENT_DEPTH = 512
"""Deepest nesting of what only passes through: deeper than decoders of servers and clients go."""
STEP_TURNS = 512
"""Turns of a loop in one step."""
ITEM_TURNS = 8
"""Turns that an item of a container costs beside those of its values."""
STEP_BYTES = 16 * 1024
"""Bytes in one step."""
QUICK_BYTES = 64 * 1024
QUICK_VALUES = 500
"""What a decoder reads in less than a millisecond has no more bytes, and about no more values, than this."""

# Every repetition is possessive, and bounded but in numbers: no match takes long, and none is tried in two ways. That
# of a group is an atomic group: before Python 3.11.5 a possessive one matches wrongly where there are alternatives
# inside (https://github.com/python/cpython/issues/106052), and in 3.11.2 where there is an optional possessive one.
_SPACE = re.compile(rb"[ \t\n\r]{1,32768}+")
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
# An escaped surrogate is a character only in a pair.
_STRICT_ESCAPE = (
    rb'\\(?:["\\/bfnrt]|u(?:(?![dD][89a-fA-F])[0-9a-fA-F]{4}|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))'
)
_INSIDE = rb'(?>(?:[^"\\\x00-\x1f]{1,4096}+|%b){0,8})'
_INSIDE_LENIENT, _INSIDE_STRICT = re.compile(_INSIDE % _ESCAPE), re.compile(_INSIDE % _STRICT_ESCAPE)
_SHORT = rb'"[^"\\\x00-\x1f]{0,256}+"'
_SCALAR = rb"(?:" + _SHORT + rb"|-?+(?:0|[1-9][0-9]*+)(?>(?:\.[0-9]++)?)(?>(?:[eE][-+]?[0-9]++)?)|true|false|null)"
_S = rb"[ \t\n\r]{0,8}+"
_SMALL = rb"(?:" + _SCALAR + rb"|\[" + _S + rb"\]|\{" + _S + rb"\})"
_ONE = re.compile(_SCALAR)
_ELEMENTS = re.compile(rb"(?>(?:," + _S + _SMALL + _S + rb"){1,512})")
_MEMBERS = re.compile(rb"(?>(?:," + _S + _SHORT + _S + rb":" + _S + _SMALL + _S + rb"){1,512})")
_QUOTE, _ARRAY, _OBJECT, _END_ARRAY, _END_OBJECT, _COMMA, _COLON = b'"[{]},:'
_BLANK = frozenset(b" \t\n\r")


def is_quick(raw: bytes) -> bool:
    """Whether a decoder may read the document at once."""
    return len(raw) <= QUICK_BYTES and raw.count(b",") + raw.count(b"[") + raw.count(b"{") <= QUICK_VALUES


def run(work: Steps[T]) -> T:
    """All steps at once."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return cast("T", done.value)


class _At(Enum):
    """What an automaton expects."""

    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    AFTER = auto()
    STRING = auto()
    KEY_STRING = auto()


@dataclass(frozen=True, slots=True)
class Span:
    """A value by its place in the document."""

    start: int
    end: int


@dataclass(slots=True)
class Members:
    """An object of which some members are wanted."""

    values: dict[str, Found]
    repeated: bool
    """Whether any name occurs more than once; the last value is kept."""
    passed: bool
    """Whether every name passed the check that was asked for."""


Found = Span | Members | list[Span]

Wanted = Mapping[str, "Want | None"]
"""Names of members; None wants their values by their places."""
Name = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Want:
    """What is wanted of a value: of an object these members, of an array its elements up to a number."""

    members: Wanted | None = None
    elements: int = 0
    check: Name | None = None
    """Looks at every name of the object."""
    keep: Name | None = None
    """Other names of the object whose values are wanted too, by their places."""


class Document:
    """The bytes of a document. Positions are indexes into them; methods take the position where something begins.

    Methods raise `NotJson`, and return the position after what they read with what they found.
    """

    def __init__(self, raw: bytes, *, strict: bool = True):
        """Where not `strict`, lone surrogates are let through, and nesting as deep as `LENIENT_DEPTH`."""
        self.raw = raw
        self._inside = _INSIDE_STRICT if strict else _INSIDE_LENIENT
        self._max_depth = MAX_DEPTH if strict else LENIENT_DEPTH
        self._turns = 0
        self._mark = 0

    def check_text(self) -> Steps[None]:
        """Raises `NotJson` unless the bytes are UTF-8 without a byte order mark."""
        raw = self.raw
        if raw.startswith(BOM):
            raise NotJson("a byte order mark is not allowed")
        start = 0
        while start < len(raw):
            end = start + STEP_BYTES
            # A character that the cut would go through is left to the next step: it began at most 3 bytes before.
            while end < len(raw) and end > start + STEP_BYTES - 4 and raw[end] & 0xC0 == 0x80:
                end -= 1
            try:
                raw[start:end].decode()
            except UnicodeDecodeError:
                raise NotJson("the body is not UTF-8") from None
            start = end
            yield

    def bad(self, position: int) -> NotJson:
        """Nothing that may stand here does."""
        return NotJson(f"not JSON at byte {position}")

    def at(self, position: int) -> int:
        """The byte there; 0, which may stand nowhere, after the end."""
        return self.raw[position] if position < len(self.raw) else 0

    def space(self, position: int) -> Steps[int]:
        """Skip white space."""
        while (match := _SPACE.match(self.raw, position)) is not None:
            position = match.end()
            if self.at(position) not in _BLANK:
                break
            yield
        return position

    def value(self, position: int, depth: int) -> Steps[int]:
        """Skip a value inside of `depth` containers."""
        raw, size = self.raw, len(self.raw)
        closers = bytearray()
        state, turns, mark = _At.VALUE, self._turns, self._mark
        while True:
            turns += 1
            if turns > STEP_TURNS or position - mark > STEP_BYTES:
                turns, mark = 0, position
                yield
            byte = raw[position] if position < size else 0
            if state is _At.STRING or state is _At.KEY_STRING:
                match = self._inside.match(raw, position)
                end = match.end() if match is not None else position
                if self.at(end) == _QUOTE:
                    state = _At.AFTER if state is _At.STRING else _At.COLON
                    end += 1
                elif end == position:
                    raise self.bad(position)
                position = end
            elif byte in _BLANK:
                match = _SPACE.match(raw, position)
                position = match.end() if match is not None else position + 1
            elif state is _At.AFTER:
                if not byte == _COMMA:
                    if byte != closers[-1]:
                        raise self.bad(position)
                    closers.pop()
                    position += 1
                else:
                    array = closers[-1] == _END_ARRAY
                    # These go over empty containers, which must not be too deep.
                    flat = depth + len(closers) < self._max_depth
                    match = (_ELEMENTS if array else _MEMBERS).match(raw, position) if flat else None
                    if match is not None:
                        position = match.end()
                    else:
                        state = _At.VALUE if array else _At.KEY
                        position += 1
            elif state is _At.COLON:
                if byte != _COLON:
                    raise self.bad(position)
                state = _At.VALUE
                position += 1
            elif state is _At.KEY or state is _At.KEY_OR_END:
                if byte == _QUOTE:
                    state = _At.KEY_STRING
                elif byte == _END_OBJECT and state is _At.KEY_OR_END:
                    closers.pop()
                    state = _At.AFTER
                else:
                    raise self.bad(position)
                position += 1
            elif (match := _ONE.match(raw, position)) is not None:
                state = _At.AFTER
                position = match.end()
            elif byte == _QUOTE:
                state = _At.STRING
                position += 1
            elif byte == _ARRAY or byte == _OBJECT:
                if depth + len(closers) >= self._max_depth:
                    raise NotJson(f"nested deeper than {self._max_depth} levels")
                closers.append(_END_ARRAY if byte == _ARRAY else _END_OBJECT)
                state = _At.VALUE_OR_END if byte == _ARRAY else _At.KEY_OR_END
                position += 1
            elif byte == _END_ARRAY and state is _At.VALUE_OR_END:
                closers.pop()
                state = _At.AFTER
                position += 1
            else:
                raise self.bad(position)
            if state is _At.AFTER and not closers:
                self._turns, self._mark = turns, mark
                return position

    def each(self, position: int, depth: int, item: Callable[[int], Steps[int]]) -> Steps[int]:
        """Read a container inside of `depth` others, each of its items with `item`."""
        if depth >= self._max_depth:
            raise NotJson(f"nested deeper than {self._max_depth} levels")
        end = _END_ARRAY if self.at(position) == _ARRAY else _END_OBJECT
        position = yield from self.space(position + 1)
        if self.at(position) == end:
            return position + 1
        while True:
            position = yield from item(position)
            position = yield from self.space(position)
            separator = self.at(position)
            position += 1
            if separator == end:
                return position
            if separator != _COMMA:
                raise self.bad(position - 1)
            position = yield from self.space(position)
            self._turns += ITEM_TURNS
            if self._turns > STEP_TURNS:
                self._turns, self._mark = 0, position
                yield

    def key(self, position: int) -> Steps[tuple[str, int]]:
        """A member's name and the position of its value."""
        if self.at(position) != _QUOTE:
            raise self.bad(position)
        end = yield from self.value(position, 0)
        name = self.decode(Span(position, end))
        position = yield from self.space(end)
        if self.at(position) != _COLON:
            raise self.bad(position)
        position = yield from self.space(position + 1)
        return name, position

    def decode(self, span: Span) -> Any:
        """A string, a number or a literal. What is in a container stays unknown: an object that equals nothing."""
        if self.raw[span.start] in (_ARRAY, _OBJECT):
            return object()
        return DECODER.decode(self.raw[span.start : span.end].decode())

    def wanted(self, position: int, depth: int, want: Want | None) -> Steps[tuple[Found, int]]:
        """Read a value, and keep what is wanted of it."""
        first = self.at(position)
        if want is not None and want.members is not None and first == _OBJECT:
            return (yield from self._members(position, depth, want.members, want))
        if want is not None and want.elements and first == _ARRAY:
            return (yield from self._elements(position, depth, want.elements))
        end = yield from self.value(position, depth)
        return Span(position, end), end

    def _members(self, start: int, depth: int, wanted: Wanted, want: Want) -> Steps[tuple[Members, int]]:
        check, keep = want.check, want.keep
        found = Members({}, repeated=False, passed=True)
        names: set[str] = set()

        def member(position: int) -> Steps[int]:
            name, position = yield from self.key(position)
            found.repeated = found.repeated or name in names
            names.add(name)
            found.passed = found.passed and (check is None or check(name))
            if name in wanted:
                found.values[name], position = yield from self.wanted(position, depth + 1, wanted[name])
                return position
            end = yield from self.value(position, depth + 1)
            if keep is not None and keep(name):
                found.values[name] = Span(position, end)
            return end

        end = yield from self.each(start, depth, member)
        return found, end

    def _elements(self, start: int, depth: int, most: int) -> Steps[tuple[list[Span], int]]:
        found: list[Span] = []

        def element(position: int) -> Steps[int]:
            end = yield from self.value(position, depth + 1)
            if len(found) < most:
                found.append(Span(position, end))
            return end

        end = yield from self.each(start, depth, element)
        return found, end

    def plain(self, found: Found) -> Any:
        """What was found as Python values, of objects what was wanted of them."""
        if isinstance(found, Span):
            return self.decode(found)
        if isinstance(found, list):
            return [self.decode(each) for each in found]
        members = {name: self.plain(value) for name, value in found.values.items()}
        return Repeated(members) if found.repeated else members

"""JSON by the words of RFC 8259, one character after the other: what the gateway's reader is compared with."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

MAX_DEPTH = 64
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": True, "false": False, "null": None}


class Refused(ValueError):
    """The bytes are not a document, or one that not every parser accepts."""


class Members(list[tuple[str, Any]]):
    """An object's members in order, repeated ones too."""


class Number(NamedTuple):
    """A number as it is written."""

    text: str


def read(raw: bytes) -> Any:
    """The document. Raises `Refused`."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raise Refused("a byte order mark")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("not UTF-8") from error
    reader = _Reader(text)
    value = reader.value(0)
    reader.space()
    if reader.at != len(text):
        raise Refused("data after the document")
    return value


class _Reader:
    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def space(self) -> None:
        while self.text[self.at : self.at + 1] in (" ", "\t", "\n", "\r"):
            self.at += 1

    def take(self, expected: str) -> None:
        if not self.text.startswith(expected, self.at):
            raise Refused(f"no {expected} at {self.at}")
        self.at += len(expected)

    def peek(self) -> str:
        self.space()
        return self.text[self.at : self.at + 1]

    def value(self, depth: int) -> Any:
        first = self.peek()
        if first in ("{", "[") and depth >= MAX_DEPTH:
            raise Refused("too deep")
        if first == "{":
            return self.members(depth + 1)
        if first == "[":
            return self.elements(depth + 1)
        if first == '"':
            return self.string()
        for word, value in _WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        number = _NUMBER.match(self.text, self.at)
        if number is None:
            raise Refused(f"nothing at {self.at}")
        self.at = number.end()
        return Number(number[0])

    def members(self, depth: int) -> Members:
        self.take("{")
        found = Members()
        if self.peek() == "}":
            self.take("}")
            return found
        while True:
            self.space()
            name = self.string()
            self.space()
            self.take(":")
            found.append((name, self.value(depth)))
            if self.peek() == "}":
                self.take("}")
                return found
            self.take(",")

    def elements(self, depth: int) -> list[Any]:
        self.take("[")
        found: list[Any] = []
        if self.peek() == "]":
            self.take("]")
            return found
        while True:
            found.append(self.value(depth))
            if self.peek() == "]":
                self.take("]")
                return found
            self.take(",")

    def string(self) -> str:
        self.take('"')
        units: list[str] = []
        while (char := self.text[self.at : self.at + 1]) != '"':
            if char < " ":
                raise Refused("a control character or the end inside a string")
            self.at += 1
            units.append(self.escape() if char == "\\" else char)
        self.take('"')
        joined = "".join(units)
        # Two escapes may be the halves of one character.
        try:
            return joined.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise Refused("a lone surrogate") from error

    def escape(self) -> str:
        char = self.text[self.at : self.at + 1]
        self.at += 1
        if char in _ESCAPES:
            return _ESCAPES[char]
        digits = _HEX.match(self.text, self.at)
        if char != "u" or digits is None:
            raise Refused("an escape that is none")
        self.at = digits.end()
        return chr(int(digits[0], 16))

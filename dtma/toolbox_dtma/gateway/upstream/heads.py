"""Heads of HTTP/1.1 messages: requests as bytes, answers read strictly (RFC 9112). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from toolbox_dtma.gateway.upstream.errors import Malformed

MAX_HEAD_BYTES = 32 * 1024
MAX_FIELDS = 128
REMEMBERED, REMEMBERED_BYTES = 256, 1024
"""How many heads are not read again when they come again, and of what size."""

# Line breaks are CRLF only, a field name is a token right before its colon, and no field goes on in the next line:
# everything that proxies and servers were seen to read differently is refused.
_HEAD = re.compile(
    r"HTTP/1\.([01]) ([1-9][0-9]{2})(?>(?: [\t\x20-\x7e\x80-\xff]*+)?)"
    r"((?>(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+)*))"
)
_FIELD = re.compile(r"\r\n([^:]++):([^\r]*+)")
_LENGTH = re.compile(r"[0-9]{1,15}")
_NOT_IN_A_LINE = re.compile(r"[\0\r\n]")


class Framing(Enum):
    """What tells where a body ends (RFC 9112, 6.3)."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class Head(NamedTuple):
    """Status and fields of an answer."""

    status: int
    headers: CIMultiDictProxy[str]
    framing: Framing
    length: int | None
    """Bytes of the body; None while only its end will tell."""
    reusable: bool
    """Whether the connection may carry another request after the body."""


def request_head(method: str, path: str, headers: Mapping[str, str], length: int | None) -> bytes:
    """A request up to its body, of which `length` is the size. Raises `ValueError` for what no line may hold."""
    lines = [f"{method} {path} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()]]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    if _NOT_IN_A_LINE.search("\x01".join(lines)) or " " in path:
        raise ValueError("a request line or a field holds a line break, a NUL or a space too many")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def parse_head(raw: bytes) -> Head:
    """An answer's head, without the empty line at its end. Raises `Malformed`."""
    return _remembered(raw) if len(raw) <= REMEMBERED_BYTES else _parsed(raw)


@lru_cache(maxsize=REMEMBERED)
def _remembered(raw: bytes) -> Head:
    """Servers repeat themselves: within a second even their clock does."""
    return _parsed(raw)


def _parsed(raw: bytes) -> Head:
    match = _HEAD.fullmatch(raw.decode("latin-1"))
    if match is None:
        raise Malformed("not the head of an HTTP/1.1 answer")
    fields = _FIELD.findall(match[3])
    if len(fields) > MAX_FIELDS:
        raise Malformed(f"more than {MAX_FIELDS} fields")
    headers = CIMultiDictProxy(CIMultiDict[str]([(name, value.strip(" \t")) for name, value in fields]))
    status = int(match[2])
    framing, length = _framing(status, match[1] == "1", headers)
    keeps = match[1] == "1" and framing is not Framing.CLOSE and status != 101
    reusable = keeps and ("Connection" not in headers or _options(headers) == {"keep-alive"})
    return Head(status, headers, framing, length, reusable)


def _options(headers: CIMultiDictProxy[str]) -> set[str]:
    """What `Connection` says."""
    return {option.strip().lower() for line in headers.getall("Connection", []) for option in line.split(",")}


def _framing(status: int, modern: bool, headers: CIMultiDictProxy[str]) -> tuple[Framing, int | None]:
    lengths = headers.getall("Content-Length", [])
    codings = headers.getall("Transfer-Encoding", [])
    if codings and (lengths or not modern or len(codings) > 1 or codings[0].lower() != "chunked"):
        raise Malformed("a transfer coding other than chunked, or one beside a length")
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise Malformed("no usable length")
    if status < 200 or status in (204, 304):
        return Framing.LENGTH, 0
    if codings:
        return Framing.CHUNKED, None
    if lengths:
        return Framing.LENGTH, int(lengths[0])
    return Framing.CLOSE, None

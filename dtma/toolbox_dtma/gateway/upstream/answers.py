"""An answer out of bytes that come in any pieces (RFC 9112). Pure."""

from __future__ import annotations

import re
from enum import Enum, auto

from toolbox_dtma.gateway.upstream.errors import Broken, Malformed
from toolbox_dtma.gateway.upstream.heads import MAX_HEAD_BYTES, Framing, Head, parse_head

MAX_INTERIM = 16
"""Interim answers (1xx) before the answer."""
MAX_SIZE_LINE = 256
"""Bytes of the line before a chunk, extensions included."""
MAX_TRAILER_BYTES = 8 * 1024

_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n")
_SWITCHING_PROTOCOLS = 101


class AnswerReader:
    """Reads one answer; its head is known before `feed` returns anything of its body."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.complete = False
        self.surplus = False
        """Whether bytes came that belong to no answer: the connection is out of step."""
        self._begun = bytearray()
        self._interim = 0
        self._left = 0
        self._chunks: _Chunks | None = None

    def feed(self, data: bytes) -> bytes:
        """The part of the body that these bytes hold. Raises `Malformed`."""
        if self.head is None:
            data = self._read_head(data)
            if self.head is None:
                return b""
        if self.complete:
            self.surplus = self.surplus or bool(data)
            return b""
        match self.head.framing:
            case Framing.LENGTH:
                return self._counted(data)
            case Framing.CHUNKED:
                return self._chunked(data)
            case Framing.CLOSE:
                return data

    def end(self) -> None:
        """The server closed its side. Raises `Broken` unless that is how this answer ends, or it was complete."""
        if self.head is not None and self.head.framing is Framing.CLOSE:
            self.complete = True
        if not self.complete:
            raise Broken("the connection was closed before the answer was complete")

    def _read_head(self, data: bytes) -> bytes:
        """Take the head off, and the interim ones before it; what follows."""
        searched = max(len(self._begun) - 3, 0)
        if self._begun:
            self._begun += data
        end = (self._begun or data).find(b"\r\n\r\n", searched)
        if end > MAX_HEAD_BYTES or (end < 0 and len(self._begun or data) > MAX_HEAD_BYTES):
            raise Malformed(f"a head of more than {MAX_HEAD_BYTES} bytes")
        if end < 0:
            self._begun = self._begun or bytearray(data)
            return b""
        data = bytes(self._begun or data)
        self._begun.clear()
        head = parse_head(data[:end])
        if head.status >= 200 or head.status == _SWITCHING_PROTOCOLS:
            self._begin_body(head)
            return data[end + 4 :]
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise Malformed(f"more than {MAX_INTERIM} interim answers")
        return self._read_head(data[end + 4 :])

    def _begin_body(self, head: Head) -> None:
        self.head = head
        if head.framing is Framing.CHUNKED:
            self._chunks = _Chunks()
        elif head.framing is Framing.LENGTH:
            self._left = head.length or 0
            self.complete = self._left == 0

    def _counted(self, data: bytes) -> bytes:
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data
        self.complete = True
        self.surplus = left < 0
        data = data[: self._left] if left else data
        self._left = 0
        return data

    def _chunked(self, data: bytes) -> bytes:
        chunks = self._chunks
        if chunks is None:
            raise RuntimeError("a chunked body has a decoder")
        body, rest = chunks.feed(data)
        self.complete = chunks.complete
        self.surplus = bool(rest)
        return body


class _Awaits(Enum):
    SIZE = auto()
    DATA = auto()
    END_OF_DATA = auto()
    TRAILER = auto()
    NOTHING = auto()


class _Chunks:
    """The chunked coding (RFC 9112, 7.1). Extensions and trailers are dropped."""

    def __init__(self) -> None:
        self._awaits = _Awaits.SIZE
        self._left = 0
        self._line = b""
        """The beginning of an unfinished line."""
        self._trailers = 0

    @property
    def complete(self) -> bool:
        """Whether the last chunk and the trailers have been read."""
        return self._awaits is _Awaits.NOTHING

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What was inside, and what comes after the end. Raises `Malformed`."""
        out: list[bytes] = []
        position = 0
        while position < len(data) and self._awaits is not _Awaits.NOTHING:
            if self._awaits is _Awaits.DATA:
                part = data[position : position + self._left]
                out.append(part)
                position += len(part)
                self._left -= len(part)
                if not self._left:
                    self._awaits = _Awaits.END_OF_DATA
            else:
                end = data.find(b"\n", position) + 1
                self._line += data[position : end or len(data)]
                position = end or len(data)
                if len(self._line) > (MAX_TRAILER_BYTES if self._awaits is _Awaits.TRAILER else MAX_SIZE_LINE):
                    raise Malformed("a line between chunks is too long")
                if end:
                    line, self._line = self._line, b""
                    self._read_line(line)
        return out[0] if len(out) == 1 else b"".join(out), data[position:]

    def _read_line(self, line: bytes) -> None:
        if self._awaits is _Awaits.SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise Malformed("a chunk has no usable size")
            self._left = int(match[1], 16)
            self._awaits = _Awaits.DATA if self._left else _Awaits.TRAILER
        elif self._awaits is _Awaits.END_OF_DATA:
            if line != b"\r\n":
                raise Malformed("a chunk is longer than its size")
            self._awaits = _Awaits.SIZE
        elif line == b"\r\n":
            self._awaits = _Awaits.NOTHING
        else:
            self._trailers += len(line)
            if self._trailers > MAX_TRAILER_BYTES or not _TRAILER.fullmatch(line):
                raise Malformed("the trailers are too long, or none")

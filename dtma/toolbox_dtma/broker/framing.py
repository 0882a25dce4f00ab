"""Bytes of a process's attach stream: Docker's frames taken apart, lines made of them, lines for its input. Pure."""

from __future__ import annotations

import struct
from enum import Enum

MAX_LINE_BYTES = 4 * 1024 * 1024
TAIL_BYTES = 64 * 1024
LAST_LINE_CHARACTERS = 300

_HEADER = struct.Struct(">B3sI")
_NO_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


class Stream(Enum):
    """Which of a process's streams a piece belongs to."""

    OUTPUT = "output"
    ERRORS = "errors"


# 0 is what was typed, as a terminal would show it, and 3 what the engine itself has to say.
_STREAMS = {0: Stream.ERRORS, 1: Stream.OUTPUT, 2: Stream.ERRORS, 3: Stream.ERRORS}


class Unframed(Exception):
    """What came is not Docker's attach stream."""


class LineTooLong(Exception):
    """The process wrote a line of more than 4 MiB."""


class Frames:
    """Takes Docker's attach stream apart: a byte for the stream, three zeros, the length in four bytes big-endian."""

    def __init__(self) -> None:
        self._header = b""
        """The beginning of a frame's header."""
        self._stream = Stream.OUTPUT
        self._left = 0

    @property
    def between(self) -> bool:
        """Whether no frame has begun that is not complete."""
        return not self._header and not self._left

    def feed(self, data: bytes) -> list[tuple[Stream, bytes]]:
        """What these bytes hold, in order. Raises `Unframed`."""
        pieces: list[tuple[Stream, bytes]] = []
        position = 0
        while position < len(data):
            if self._left:
                piece = data[position : position + self._left]
                self._left -= len(piece)
                position += len(piece)
                pieces.append((self._stream, piece))
                continue
            missing = _HEADER.size - len(self._header)
            self._header += data[position : position + missing]
            position += missing
            if len(self._header) == _HEADER.size:
                self._begin(self._header)
                self._header = b""
        return pieces

    def _begin(self, header: bytes) -> None:
        number, zeros, self._left = _HEADER.unpack(header)
        if number not in _STREAMS or zeros != b"\0\0\0":
            raise Unframed("not the header of a frame")
        self._stream = _STREAMS[number]


class Lines:
    """Makes lines of pieces (MCP, stdio transport: a message a line). Blank ones are left out."""

    def __init__(self, most: int = MAX_LINE_BYTES) -> None:
        self._most = most
        self._begun: list[bytes] = []
        self.held = 0
        """Bytes of the line that has no end yet."""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that these bytes end, without their line ends. Raises `LineTooLong`."""
        first, *more = data.split(b"\n")
        self._begun.append(first)
        self.held += len(first)
        if self.held > self._most or any(len(line) > self._most for line in more):
            raise LineTooLong(f"a line of more than {self._most} bytes")
        if not more:
            return []
        lines = [b"".join(self._begun), *more[:-1]]
        self._begun = [more[-1]]
        self.held = len(more[-1])
        return [line for line in lines if not line.isspace() and line]


class Tail:
    """The end of what a process wrote to its standard error."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self._kept += data[-TAIL_BYTES:]
        if len(self._kept) > TAIL_BYTES:
            del self._kept[:-TAIL_BYTES]

    def last_line(self) -> str:
        """The last line with anything on it, its printable characters only; empty if there is none."""
        for line in reversed(self._kept.decode(errors="replace").splitlines()):
            shown = "".join(c for c in line if c.isprintable()).strip()
            if shown:
                return shown[:LAST_LINE_CHARACTERS]
        return ""


def as_line(message: bytes) -> bytes:
    """A JSON message as a line for a process's input.

    In valid JSON line ends are only ever white space. Left in, they would make several messages of one: of those
    inside it, policy has seen nothing. Carriage returns are line ends too for many who read text.
    """
    return message.translate(_NO_LINE_ENDS) + b"\n"

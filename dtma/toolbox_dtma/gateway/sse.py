"""Server-sent events on their way through: ids are replaced, and events can be held until they are whole. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 4 * 1024 * 1024
_LINE_BYTES = 64
"""What keeping a line costs besides its bytes: short lines must not take many times the limit."""
MAX_ID_LINE = 2048
"""Bytes of an `id` line that are looked at; none as long can be resumed by."""
_BOM = b"\xef\xbb\xbf"
_BOMS = re.compile(rb"(?:\xef\xbb\xbf)*+")
_OTHER_BREAKS = re.compile(rb"[\x0b\x0c\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]")
"""What some clients take for line ends besides those of the specification."""

WrapId = Callable[[bytes], bytes]
"""From the value of a server's `id` field to the one that the client gets; empty forbids to resume there."""


DENSE_LINES, PORTION_BYTES = 500, 1024
"""What has more line ends than this is read in portions of so many bytes."""


def portions(chunk: bytes) -> Iterator[bytes]:
    """A chunk in parts, each of which is read in little time."""
    if chunk.count(b"\n") + chunk.count(b"\r") <= DENSE_LINES:
        yield chunk
    else:
        for start in range(0, len(chunk), PORTION_BYTES):
            yield chunk[start : start + PORTION_BYTES]


def message_event(message: bytes) -> bytes:
    """One message of MCP. Line ends inside of it are white space of JSON, and would end the data line."""
    return b"event: message\ndata: " + message.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n\n"


class EventTooLarge(Exception):
    """A held event exceeds the limit: it cannot be decided, so the stream must close."""


@dataclass(frozen=True, slots=True)
class HeldEvent:
    """One whole event, its id replaced."""

    lines: tuple[bytes, ...]
    data: bytes | None
    """Its data lines joined with newlines; None if it has none."""

    def render(self, data: bytes | None = None) -> bytes:
        """The event as bytes, with `data` (without line breaks) in place of its own if given."""
        lines = self.lines
        if data is not None:
            lines = (*(line for line in lines if _field(line) != b"data"), b"data: " + data)
        return b"".join(line + b"\n" for line in lines) + b"\n"


def _field(line: bytes) -> bytes:
    return line.partition(b":")[0]


def only_event(stream: bytes) -> HeldEvent | None:
    """The event of a whole stream that is this one and leaves as it came; None if it has to be read line by line.

    Most answers are such a stream.
    """
    end = len(stream) - 2
    if end <= 0 or stream.find(b"\n\n") != end or b"\r" in stream or stream.startswith((b"id", b"\n", _BOM)):
        return None
    if b"\nid" in stream:
        return None
    lines = stream[:end].split(b"\n")
    data = [line[5:].removeprefix(b" ") for line in lines if _field(line) == b"data"]
    return HeldEvent(tuple(lines), b"\n".join(data) if data else None)


class SseRewriter:
    """Reads a stream in any chunks. Line ends leave as LF; `id` fields leave only as `wrap` makes them.

    While `hold` is false, bytes pass as they come; events begun while it is true are held until complete.
    """

    def __init__(self, wrap: WrapId, max_event_bytes: int = MAX_EVENT_BYTES):
        self._wrap = wrap
        self._max_event = max_event_bytes
        self._after_cr = False
        self._start: bytes | None = b""
        """First bytes of the stream while they could be a byte order mark or follow one; None once decided."""
        self._holding = False
        self._event_begun = False
        self._head = b""
        """First bytes of a line while they could still become an id field."""
        self._line_known = False
        self._in_id = False
        self._line = bytearray()
        self._lines: list[bytes] = []
        self._size = 0

    @property
    def held(self) -> int:
        """Bytes of the event that has begun and is held."""
        return self._size

    @property
    def unterminated(self) -> bool:
        """Whether a held event has begun and not ended: at the end of the stream it must be discarded."""
        return self._holding and self._event_begun

    @property
    def within_event(self) -> bool:
        """Whether a part of an event that has not ended may have left."""
        return self._event_begun and not self._holding

    def feed(self, chunk: bytes, *, hold: bool) -> list[bytes | HeldEvent]:
        """What may leave after this chunk, in order. Raises `EventTooLarge`."""
        data = self._without_bom(self._with_lf(chunk))
        out: list[bytes | HeldEvent] = []
        position = 0
        while position < len(data):
            if not self._event_begun:
                self._holding = hold
            position = self._hold(data, position, out) if self._holding else self._pass(data, position, out)
        return out

    def _with_lf(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in chunk else chunk

    def _without_bom(self, data: bytes) -> bytes:
        if self._start is None:
            return data
        data = self._start + data
        # All of them: a client takes one away, and would then find a field where policy saw none.
        if marks := _BOMS.match(data):
            data = data[marks.end() :]
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._start = data
            return b""
        self._start = None
        return data

    def _pass(self, data: bytes, position: int, out: list[bytes | HeldEvent]) -> int:
        """Consume up to one line. Returns the position after it."""
        end = data.find(b"\n", position)
        complete = end >= 0
        stop = end + 1 if complete else len(data)
        if not self._line_known:
            head = self._head + data[position : min(stop, position + 4)]
            if not complete and len(head) < 3 and b"id:".startswith(head):
                self._head = head
                self._event_begun = True
                return len(data)
            self._in_id = head.startswith((b"id:", b"id\n"))
            self._event_begun = head != b"\n"
            piece = self._head + data[position:stop]
            self._head = b""
        else:
            piece = data[position:stop]
        self._line_known = not complete
        if not self._in_id:
            out.append(piece)
            return stop
        # Beyond the limit the rest changes nothing: such an id is replaced by none.
        self._line += piece[: MAX_ID_LINE + 1]
        del self._line[MAX_ID_LINE + 1 :]
        if complete:
            line = bytes(self._line).removesuffix(b"\n")
            self._line.clear()
            if (wrapped := self._wrapped(line)) is not None:
                out.append(wrapped + b"\n")
        return stop

    def _hold(self, data: bytes, position: int, out: list[bytes | HeldEvent]) -> int:
        """Consume up to one line. Returns the position after it."""
        end = data.find(b"\n", position)
        stop = end if end >= 0 else len(data)
        self._size += stop - position
        if self._size > self._max_event:
            raise EventTooLarge(f"an event exceeds {self._max_event} bytes")
        self._line += data[position:stop]
        self._event_begun = True
        if end < 0:
            return stop
        line = bytes(self._line)
        self._line.clear()
        if line:
            kept = self._kept(line)
            if kept is not None:
                self._lines.append(kept)
                if len(self._lines) * _LINE_BYTES > self._max_event:
                    raise EventTooLarge(f"an event has more than {self._max_event // _LINE_BYTES} lines")
        else:
            out.append(self._event())
        return end + 1

    def _kept(self, line: bytes) -> bytes | None:
        """A line of a held event as the client gets it; None if it must not."""
        field = _field(line)
        if field == b"id":
            return self._wrapped(line)
        # Data is looked at as a whole, and these are inside its strings; elsewhere they could begin a data line.
        return None if field != b"data" and _OTHER_BREAKS.search(line) else line

    def _wrapped(self, line: bytes) -> bytes | None:
        """An `id` line as the client gets it; None if it has no effect by the specification of event streams."""
        value = line[3:].removeprefix(b" ")
        if b"\0" in value:
            return None
        wrapped = self._wrap(value) if value and len(line) <= MAX_ID_LINE else b""
        return b"id: " + wrapped if wrapped else b"id"

    def _event(self) -> HeldEvent:
        values = [line[5:].removeprefix(b" ") for line in self._lines if _field(line) == b"data"]
        event = HeldEvent(tuple(self._lines), b"\n".join(values) if values else None)
        self._lines.clear()
        self._size = 0
        self._event_begun = False
        return event

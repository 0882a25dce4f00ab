"""How a call ended, told from the server's answer as it passes: a bounded look that changes and delays nothing. Pure.

A document of up to `LOOK_BYTES` is read whole. Of a larger one the first `LOOK_BYTES` and the last `END_BYTES` are
looked at: JSON-RPC errors show at the beginning, `isError` at the end, where SDKs write it. A larger document that
says `isError` in neither place counts as `ok`.
"""

from __future__ import annotations

import re
from typing import Any, cast

from pydantic_core import from_json

from toolbox_dtma.gateway.sse import HeldEvent
from toolbox_dtma.wire import CallOutcome

LOOK_BYTES = 64 * 1024
END_BYTES = 512

UNKNOWN_ID = object()
"""Id of an answer whose own was not among the bytes that were looked at."""
Ended = tuple[object, CallOutcome]
"""(id, outcome) of one answer."""

_MORE = rb'(?:\s*,\s*"[^"\\]{1,64}"\s*:\s*(?:"[^"\\]*"|[-\w.+]+|\{[^{}]*\}))*'
_ERROR_AT_THE_END = re.compile(
    rb'(?<!\\)"isError"\s*:\s*(true|false)' + _MORE + rb"\s*\}" + _MORE + rb"\s*\}\s*\Z", re.ASCII
)
"""`isError` as a member of an object that is a member of the whole document: a quote within a string is escaped."""


def outcome_of(message: object) -> CallOutcome | None:
    """What a JSON-RPC response says; None for anything else."""
    if not isinstance(message, dict) or "method" in message:
        return None
    members = cast("dict[str, Any]", message)
    if members.get("error") is not None:
        return CallOutcome.RPC_ERROR
    result = members.get("result")
    if not isinstance(result, dict):
        return None
    found = cast("dict[str, Any]", result)
    if found.get("isError") is True:
        return CallOutcome.TOOL_ERROR
    if found.get("resultType") == "input_required":
        return CallOutcome.INPUT_REQUIRED
    # 2025-11-25 has the task in a member of its own, 2026-07-28 says it by the type.
    if found.get("resultType") == "task" or isinstance(found.get("task"), dict):
        return CallOutcome.TASK
    return CallOutcome.OK


class Look:
    """One JSON document, in any chunks. What is kept of it are references, and at most its end is copied."""

    __slots__ = ("_begun", "_end", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._begun: object = None
        """The document as far as its first bytes tell; None while it may still be read whole."""
        self._end = b""

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        if self._size <= LOOK_BYTES:
            self._parts.append(chunk)
        self._size += len(chunk)
        if self._size > LOOK_BYTES:
            if self._parts:
                self._begun = _parsed(b"".join(self._parts)[:LOOK_BYTES], partly=True)
                self._parts.clear()
            self._end = chunk[-END_BYTES:] if len(chunk) >= END_BYTES else (self._end + chunk)[-END_BYTES:]

    @property
    def is_cut(self) -> bool:
        """Whether it is too large to be read whole."""
        return self._size > LOOK_BYTES

    def ended(self) -> list[Ended]:
        """Answers in the document, which is complete: (id, outcome) of each."""
        if not self.is_cut:
            document = _parsed(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts), partly=False)
            messages = cast("list[object]", document) if isinstance(document, list) else [document]
            return [(_id_of(message), outcome) for message in messages if (outcome := outcome_of(message)) is not None]
        if isinstance(self._begun, list):
            # All but the last one, which may be cut.
            whole = cast("list[object]", self._begun)[:-1]
            return [(_id_of(message), outcome) for message in whole if (outcome := outcome_of(message)) is not None]
        outcome = outcome_of(self._begun)
        if outcome is None:
            return []
        if outcome is CallOutcome.OK:
            said = _ERROR_AT_THE_END.search(self._end)
            outcome = CallOutcome.TOOL_ERROR if said is not None and said[1] == b"true" else outcome
        return [(_id_of(self._begun, absent=UNKNOWN_ID), outcome)]


def _parsed(raw: bytes, *, partly: bool) -> object:
    try:
        return from_json(raw, allow_partial=partly, cache_strings=False)
    except ValueError:
        return None


def _id_of(message: object, absent: object = None) -> object:
    id_ = cast("dict[str, Any]", message).get("id", absent)
    return id_ if id_ is absent or (isinstance(id_, str | int | float) and not isinstance(id_, bool)) else None


class EventsLook:
    """A stream of server-sent events, line ends LF, in any pieces of which none joins two lines; `id` lines whole."""

    __slots__ = ("_field", "_fresh", "_in_data", "_look", "resumable")

    def __init__(self) -> None:
        self._look: Look | None = None
        self._fresh = True
        self._in_data: bool = False
        self._field: bytes = b""
        """First bytes of a line while they could still become a data field."""
        self.resumable = False
        """Whether an event had an id to resume from."""

    def feed(self, piece: bytes) -> list[Ended]:
        """The next piece; answers that are complete with it."""
        complete = piece.endswith(b"\n")
        if self._fresh:
            piece = self._field + piece
            if not complete and len(piece) < 5 and b"data:".startswith(piece):
                self._field = piece
                return []
            self._field = b""
            if piece == b"\n":
                return self._dispatched()
            self._in_data = piece.startswith(b"data:")
            self.resumable = self.resumable or _resumes(piece)
            piece = piece[5:] if self._in_data else piece
        self._fresh = complete
        if self._in_data:
            self._look = self._look or Look()
            self._look.feed(piece)
        return []

    def held(self, event: HeldEvent) -> list[Ended]:
        """A whole event in place of its pieces."""
        self.resumable = self.resumable or any(map(_resumes, event.lines))
        self._look = Look()
        self._look.feed(event.data or b"")
        return self._dispatched()

    def _dispatched(self) -> list[Ended]:
        look, self._look = self._look, None
        return look.ended() if look is not None else []


def _resumes(line: bytes) -> bool:
    return line.startswith(b"id:") and bool(line[3:].strip())

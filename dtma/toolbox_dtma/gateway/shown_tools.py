"""Every tool that a server shows in one conversation, as it sends it: read beside the SDK, whose models drop members.

Tools are recognised by the shape of a message, as the filter of lists does it and by its code, so that what is hashed
here is what that filter will meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from toolbox_dtma.gateway.definitions import NotCanonical, define, opaque
from toolbox_dtma.gateway.filtering import Listing, Undecidable, filter_lists
from toolbox_dtma.gateway.skimming import run
from toolbox_dtma.gateway.sse import EventTooLarge, HeldEvent, SseRewriter
from toolbox_dtma.gateway.strictjson import encodable

MAX_CHARACTERS = 2 * 1024 * 1024
"""Of all definitions of one conversation that are hashed: the process that probes must go on answering."""


@dataclass(frozen=True, slots=True)
class ShownTool:
    """One definition under one name."""

    name: str
    hash: str
    """`sha256:…`, or what stands for the hash of a definition that has none."""
    description: str = ""
    problem: str | None = None
    """Why it has none."""


class ShownTools:
    """Collects definitions, each once, in the order in which they were first shown."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], ShownTool] = {}
        self._characters = 0
        self._listing = (Listing("tools", "name", lambda _name: True, self._take),)

    @property
    def found(self) -> tuple[ShownTool, ...]:
        """What was shown so far."""
        return tuple(self._found.values())

    def reader(self, content_type: str) -> Callable[[bytes, bool], None]:
        """Takes the body of one answer: chunks, and whether each was the last."""
        kind = content_type.partition(";")[0].strip().lower()
        return self._events() if kind == "text/event-stream" else self._document()

    def _document(self) -> Callable[[bytes, bool], None]:
        whole = bytearray()

        def read(chunk: bytes, last: bool) -> None:
            whole.extend(chunk)
            if last:
                self._look(bytes(whole))
                whole.clear()

        return read

    def _events(self) -> Callable[[bytes, bool], None]:
        rewriter: SseRewriter | None = SseRewriter(lambda _id: b"")
        unread = bytearray()

        def read(chunk: bytes, last: bool) -> None:
            nonlocal rewriter
            del last
            if rewriter is None:
                return
            unread.extend(chunk)
            if b"}" not in chunk and not rewriter.unterminated:
                # No tool without a brace: a stream of a million empty events is not worth reading twice.
                return
            ready = bytes(unread)
            unread.clear()
            try:
                for piece in rewriter.feed(ready, hold=True):
                    if isinstance(piece, HeldEvent) and piece.data:
                        self._look(piece.data)
            except EventTooLarge:
                # No filter passes it on either; its tools stay unknown, and so unapproved.
                rewriter = None

        return read

    def _look(self, document: bytes) -> None:
        try:
            run(filter_lists(document, self._listing))
        except Undecidable:
            # What is not JSON shows no tool to anybody; what the SDK makes of it is the probe's result.
            return

    def _take(self, name: str, text: str) -> str:
        if not encodable(name):
            # Nobody can call it: a body with such a name is refused.
            return text
        self._characters += len(text)
        try:
            if self._characters > MAX_CHARACTERS:
                raise NotCanonical(f"it comes after more than {MAX_CHARACTERS} characters of other definitions")
            definition = define(text)
            tool = ShownTool(name, definition.hash, definition.description)
        except NotCanonical as error:
            tool = ShownTool(name, opaque(text), problem=str(error))
        self._found.setdefault((tool.name, tool.hash), tool)
        return text

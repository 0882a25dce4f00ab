"""What the relay tells of an answer on its way, to whoever wants to know."""

from __future__ import annotations

from toolbox_dtma.gateway.sse import HeldEvent
from toolbox_dtma.wire import CallOutcome


class Observer:
    """One that wants to know nothing. Methods never suspend and never raise."""

    __slots__ = ()

    @property
    def answered(self) -> bool:
        """Whether the request consists of calls, and the server has answered all of them in an event stream."""
        return False

    def answering(self, status: int, kind: str) -> None:
        """The head of the server's answer came; `kind` is its media type."""

    def body(self, chunk: bytes) -> None:
        """Bytes of the server's document."""

    def event(self, piece: bytes | HeldEvent) -> None:
        """A piece of the server's event stream, as `SseRewriter` gives it out."""

    def sent(self, number: int) -> None:
        """So many bytes of a body went to the client."""

    def complete(self) -> None:
        """The server's answer came to its end."""

    def broke(self, error: BaseException) -> None:
        """The answer ended before that."""

    def settle(self, outcome: CallOutcome, *, refused: bool = False) -> None:
        """Nothing more will come. What the server did not answer had this outcome, and everything if the gateway
        `refused` to pass an answer on. Only the first time counts."""


UNMEASURED = Observer()

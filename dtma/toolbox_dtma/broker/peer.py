"""What a session talks to: one protocol for all ways in which a server's messages come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from toolbox_dtma.broker.messages import Message
from toolbox_dtma.link.broker import Closing

Lost = Callable[[Message, str], None]
"""A message that was written did not reach the server, and why: a sentence for the client."""


class Over(Exception):
    """Nothing more comes of the server; the text is for the client."""

    def __init__(self, why: Closing, message: str):
        super().__init__(message)
        self.why = why
        self.message = message


class Peer(Protocol):
    """One server's side of one session. Its methods run in one event loop, `receive` in one task of it."""

    @property
    def full(self) -> str:
        """What is said where it takes no message."""
        ...

    @property
    def not_a_message(self) -> str:
        """What is said where it sent something that is no message."""
        ...

    @property
    def held(self) -> int:
        """Bytes of what is not whole yet."""
        ...

    async def receive(self) -> Sequence[bytes]:
        """The next documents, each whole, or none; without an end of its own. Raises `Over`."""
        ...

    async def room(self) -> None:
        """Wait until it takes another message, or is over. Raises `Over` where it knows that."""
        ...

    def write(self, messages: Sequence[Message], lost: Lost, version: str | None) -> None:
        """Send messages after `room`, in their order, without waiting; `version` is the revision that they name."""
        ...

    def abort(self) -> None:
        """End it now."""
        ...

    async def ended(self) -> None:
        """After `abort`: wait until nothing of it runs any more."""
        ...

    def last_words(self) -> str:
        """What the server complained of last, for its admin; mostly empty."""
        ...

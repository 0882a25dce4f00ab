"""Which requests of one POST the server has not answered yet, told from its messages as they pass. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from toolbox_dtma.gateway.outcomes import UNKNOWN_ID, Ended, EventsLook
from toolbox_dtma.gateway.parsing import RpcId
from toolbox_dtma.gateway.refusal import errors
from toolbox_dtma.gateway.sse import HeldEvent, message_event
from toolbox_dtma.wire import CallOutcome


class Unanswered:
    """The requests of one POST that have no answer yet."""

    def __init__(self, ids: Sequence[RpcId]):
        self._left = list(ids)
        self._alone = len(ids) == 1

    @property
    def is_over(self) -> bool:
        """Whether all are answered."""
        return not self._left

    def take_left(self) -> list[RpcId]:
        """Those that are not answered, which somebody now does."""
        left, self._left = self._left, []
        return left

    def note(self, ended: Ended) -> bool:
        """Take an answer into account. Whether it is an error without an id, which only one request can be meant by.

        That request is not taken for answered: its client may need the error with the id.
        """
        id_, outcome = ended
        for index, left in enumerate(self._left):
            if is_same(id_, left):
                del self._left[index]
                return False
        if not self._alone or not self._left:
            return False
        if id_ is UNKNOWN_ID:
            self._left.clear()
        return id_ is None and outcome is CallOutcome.RPC_ERROR


class StreamUnanswered(Unanswered):
    """The same, told from an event stream in the pieces that `SseRewriter` gives out."""

    def __init__(self, ids: Sequence[RpcId]):
        super().__init__(ids)
        self._look = EventsLook()

    def event(self, piece: bytes | HeldEvent) -> None:
        """The next piece."""
        for ended in self._look.held(piece) if isinstance(piece, HeldEvent) else self._look.feed(piece):
            if self.note(ended):
                self.take_left()

    def errors(self, text: str) -> bytes:
        """Events that answer what is left."""
        return b"".join(map(message_event, errors(self.take_left(), text)))


def is_same(one: object, other: object) -> bool:
    """Whether two ids are one: 1 and 1.0 are one number in JSON; "1" is none."""
    return isinstance(one, str) == isinstance(other, str) and one == other

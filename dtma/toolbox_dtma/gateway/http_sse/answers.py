"""What of a server's answers goes on a client's stream: every request of a message is answered there, once. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic_core import from_json

from toolbox_dtma.gateway.methods import HANDSHAKE_VERSIONS
from toolbox_dtma.gateway.outcomes import LOOK_BYTES, UNKNOWN_ID, Ended, Look
from toolbox_dtma.gateway.parsing import RpcId
from toolbox_dtma.gateway.refusal import SERVER_ERROR, rpc_error
from toolbox_dtma.wire import CallOutcome

COMMENT = b": \n\n"
"""Says nothing to a client, and shows whether there still is one (HTML, 9.2.7)."""


def endpoint_event(reference: str) -> bytes:
    """The first event of a stream."""
    return b"event: endpoint\ndata: " + reference.encode() + b"\n\n"


def message_event(message: bytes) -> bytes:
    """One message. Line ends inside of it are white space of JSON, and would end the data line."""
    return b"event: message\ndata: " + message.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n\n"


def encoded(message: object) -> bytes:
    """A message of the gateway's own."""
    return json.dumps(message, separators=(",", ":")).encode()


def errors(ids: Sequence[RpcId], text: str, data: Mapping[str, Any] | None = None) -> list[bytes]:
    """An error of the gateway's own for each request."""
    return [encoded(rpc_error(SERVER_ERROR, text, id, data)) for id in ids]


def negotiated(answer: bytes) -> str | None:
    """The revision that an answer to `initialize` settles on, if it is one that has a handshake."""
    document = _document(answer)
    result = document.get("result") if document is not None else None
    version = cast("dict[str, Any]", result).get("protocolVersion") if isinstance(result, dict) else None
    # Any other in a header would say that there was no handshake.
    return version if isinstance(version, str) and version in HANDSHAKE_VERSIONS else None


class Awaited:
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

    def event(self, data: bytes) -> bytes:
        """A message of an event stream, as the client gets it."""
        for ended in _looked_at(data):
            addressed = self._addressed(data, ended)
            if addressed is not None:
                return addressed
        return data

    def document(self, status: int, raw: bytes) -> list[bytes]:
        """The messages in a JSON answer, as the client gets them: none where it says nothing about the requests."""
        if status >= 400:
            return self._refused(raw)
        ended = _looked_at(raw)
        if self._alone and any(self._is_of_another(each) for each in ended):
            # Lists are filtered in answers to those who ask for lists: this would be one for another request.
            return []
        if not ended and self._alone and len(raw) > LOOK_BYTES:
            # Too large to be looked at whole, and nothing in its beginning says otherwise.
            self._left.clear()
            return [raw]
        for each in ended:
            addressed = self._addressed(raw, each)
            if addressed is not None:
                return [addressed]
        return [raw] if ended else []

    def _refused(self, raw: bytes) -> list[bytes]:
        document = _document(raw)
        error = document.get("error") if document is not None else None
        if not isinstance(error, dict):
            return []
        told = cast("dict[str, Any]", error)
        code, message, data = told.get("code"), told.get("message"), told.get("data")
        if isinstance(code, bool) or not isinstance(code, int) or not isinstance(message, str):
            return []
        found = cast("dict[str, Any]", data) if isinstance(data, dict) else None
        return [encoded(rpc_error(code, message, id, found)) for id in self.take_left()]

    def _is_of_another(self, ended: Ended) -> bool:
        id_ = ended[0]
        return id_ is not UNKNOWN_ID and id_ is not None and not any(_same(id_, left) for left in self._left)

    def _addressed(self, raw: bytes, ended: Ended) -> bytes | None:
        """Note an answer. The message with the id of the only request, where it is an error without one."""
        id_, outcome = ended
        for index, left in enumerate(self._left):
            if _same(id_, left):
                del self._left[index]
                return None
        if not self._alone or not self._left:
            return None
        if id_ is UNKNOWN_ID:
            self._left.clear()
        elif id_ is None and outcome is CallOutcome.RPC_ERROR and (document := _document(raw)) is not None:
            return encoded({**document, "id": self.take_left()[0]})
        return None


def _looked_at(raw: bytes) -> list[Ended]:
    look = Look()
    look.feed(raw)
    return look.ended()


def _same(one: object, other: object) -> bool:
    # 1 and 1.0 are one number in JSON; "1" is none.
    return isinstance(one, str) == isinstance(other, str) and one == other


def _document(raw: bytes) -> dict[str, Any] | None:
    """A small JSON object."""
    if len(raw) > LOOK_BYTES:
        return None
    try:
        document: object = from_json(raw, cache_strings=False)
    except ValueError:
        return None
    return cast("dict[str, Any]", document) if isinstance(document, dict) else None

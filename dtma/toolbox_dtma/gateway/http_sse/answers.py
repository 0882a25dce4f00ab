"""What of a server's answers goes on a client's stream: every request of a message is answered there, once. Pure."""

from __future__ import annotations

from typing import Any, cast

from pydantic_core import from_json

from toolbox_dtma.gateway.methods import HANDSHAKE_VERSIONS
from toolbox_dtma.gateway.outcomes import LOOK_BYTES, UNKNOWN_ID, Ended, Look
from toolbox_dtma.gateway.refusal import encoded, rpc_error
from toolbox_dtma.gateway.unanswered import Unanswered, is_same

COMMENT = b": \n\n"
"""Says nothing to a client, and shows whether there still is one (HTML, 9.2.7)."""


def endpoint_event(reference: str) -> bytes:
    """The first event of a stream."""
    return b"event: endpoint\ndata: " + reference.encode() + b"\n\n"


def negotiated(answer: bytes) -> str | None:
    """The revision that an answer to `initialize` settles on, if it is one that has a handshake."""
    document = _document(answer)
    result = document.get("result") if document is not None else None
    version = cast("dict[str, Any]", result).get("protocolVersion") if isinstance(result, dict) else None
    # Any other in a header would say that there was no handshake.
    return version if isinstance(version, str) and version in HANDSHAKE_VERSIONS else None


class Awaited(Unanswered):
    """The unanswered requests of a message that came over HTTP+SSE: their answers become events of its stream."""

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
        return id_ is not UNKNOWN_ID and id_ is not None and not any(is_same(id_, left) for left in self._left)

    def _addressed(self, raw: bytes, ended: Ended) -> bytes | None:
        """Note an answer. The message with the id of the only request, where it is an error without one."""
        if not self.note(ended) or (document := _document(raw)) is None:
            return None
        return encoded({**document, "id": self.take_left()[0]})


def _looked_at(raw: bytes) -> list[Ended]:
    look = Look()
    look.feed(raw)
    return look.ended()


def _document(raw: bytes) -> dict[str, Any] | None:
    """A small JSON object."""
    if len(raw) > LOOK_BYTES:
        return None
    try:
        document: object = from_json(raw, cache_strings=False)
    except ValueError:
        return None
    return cast("dict[str, Any]", document) if isinstance(document, dict) else None

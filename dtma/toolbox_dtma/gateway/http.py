"""aiohttp's connection, whose refusals of broken HTTP are answered and audited like all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from toolbox_dtma.gateway.parsing import INVALID_REQUEST
from toolbox_dtma.gateway.refusal import Refusal

Refuse = Callable[[web.BaseRequest, Refusal], web.StreamResponse]
"""Writes to the log and gives the answer."""


def broken() -> Refusal:
    """400: what came is not HTTP/1.1, or is framed in a way that two parsers could read differently."""
    return Refusal.rpc(400, "http", INVALID_REQUEST, "The request is not well-formed HTTP/1.1")


class AuditedConnection(RequestHandler):
    """A connection that says nothing to its client which `refused` does not know of."""

    __slots__ = ("_refused",)

    def __init__(self, manager: web.Server, refused: Refuse, **options: Any):
        super().__init__(manager, **options)
        self._refused = refused

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        super().data_received(data)
        request = self._current_request
        if request is not None and self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            # The rest of this body cannot be read: without a word to its reader it would wait until its deadline.
            request.content.set_exception(web.RequestPayloadError("broken framing"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request."""
        if status != 400 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        # aiohttp's own answer would quote the request.
        response = self._refused(request, broken())
        response.force_close()
        return response

"""A worker as a client of itself, over pipes that exist only in its memory: nobody else can use them.

What comes this way is admitted, decided, counted and recorded like any request. The one thing it says that others
cannot is which address the client has.
"""

from __future__ import annotations

from collections.abc import Mapping

from toolbox_dtma.gateway.connection import Server
from toolbox_dtma.gateway.http_sse.pipe import join
from toolbox_dtma.gateway.upstream.client import UpstreamClient
from toolbox_dtma.gateway.upstream.connection import Answer, Connection, Origin
from toolbox_dtma.gateway.upstream.heads import request_head


class OwnClient(UpstreamClient):
    """Sends requests to the worker's own server part."""

    def __init__(self, server: Server):
        """`server` has no other connections than these."""
        super().__init__()
        self._server = server

    @staticmethod
    def origin(source: str) -> Origin:
        """Where requests go that are made for a client at this address."""
        return Origin(source, 0)

    def request(
        self, method: str, origin: Origin, path: str, headers: Mapping[str, str], body: bytes | None, *, silence: float
    ) -> Answer:
        """See `UpstreamClient`. It is on its way when this returns: requests begin in the order of these calls."""
        head = request_head(method, path, headers, None if body is None else len(body))
        answer = Answer(self._loop, silence)
        connection = self._take(origin)
        if connection is None:
            connection = Connection(origin, self)
            join(connection, self._server.connection(_nobody_counts, source=origin.host))
        connection.send(answer, head, body)
        return answer


def _nobody_counts() -> None:
    """Its client's connection is counted."""

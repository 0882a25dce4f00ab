"""How an exchange with a server fails."""

from __future__ import annotations

from typing import ClassVar


class UpstreamError(Exception):
    """The server gave no whole answer."""

    reason: ClassVar[str]
    """A stable word for logs."""


class ConnectFailed(UpstreamError):
    """No connection came about: the server has seen nothing of the request."""

    reason = "connect"

    def __init__(self, message: str, *, refused: bool = False):
        """`refused`: nothing listens there."""
        super().__init__(message)
        self.refused = refused


class Malformed(UpstreamError):
    """What the server sent is not an HTTP/1.1 answer whose end two readers must agree about."""

    reason = "upstream-malformed"


class Broken(UpstreamError):
    """The connection ended before the answer did."""

    reason = "upstream-broken"


class Silent(UpstreamError):
    """The server sent nothing for too long."""

    reason = "upstream-silent"

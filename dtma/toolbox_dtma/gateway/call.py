"""A decided request, on its way from the HTTP side of a worker to the relay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from toolbox_dtma.gateway.parsing import RpcId
from toolbox_dtma.gateway.sessions import Binding
from toolbox_dtma.gateway.state import Target


class Call(NamedTuple):
    """What goes to the server, and what must be known of it when the answer comes."""

    method: str
    target: Target
    headers: Mapping[str, str]
    body: bytes | None
    id: RpcId
    """Of the only message; None for a batch."""
    ids: tuple[RpcId, ...]
    """Of every request."""
    binding: Binding
    session: str | None
    """The server's id of the session that the request belongs to."""
    filter_lists: bool
    """Whether a JSON answer may hold lists that belong to it."""
    survives: bool
    """Whether it runs on when the client hangs up."""
    idle_seconds: float

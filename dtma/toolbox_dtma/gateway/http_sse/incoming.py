"""A message that a client POSTed, as far as its stream has to know it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from multidict import CIMultiDictProxy

from toolbox_dtma.gateway.methods import HANDSHAKE_VERSIONS
from toolbox_dtma.gateway.parsing import Body, Kind, RpcId
from toolbox_dtma.gateway.policy import meta_version

INITIALIZE = "initialize"
INITIALIZED = "notifications/initialized"

_CARRIED = ("Host", "Authorization", "traceparent", "tracestate")


@dataclass(frozen=True, eq=False)
class Incoming:
    """One POST."""

    raw: bytes
    body: Body
    headers: Mapping[str, str]
    """What is said of the client to the worker's own /mcp, `carried` from the POST."""

    @cached_property
    def ids(self) -> tuple[RpcId, ...]:
        """Of the requests in it that can be answered."""
        asked = (message.id for message in self.body.messages if message.kind is Kind.REQUEST)
        return tuple(id_ for id_ in asked if id_ is not None)

    @property
    def first_id(self) -> RpcId:
        """For an answer to the POST itself."""
        return None if self.body.batch else self.body.messages[0].id

    @property
    def opens(self) -> bool:
        """Whether its answer begins a session."""
        return any(message.method == INITIALIZE for message in self.body.messages)

    @property
    def is_initialized(self) -> bool:
        """Whether the server may speak by itself from now on."""
        return any(message.method == INITIALIZED for message in self.body.messages)

    @property
    def is_modern(self) -> bool:
        """Whether it is of a revision without handshake."""
        named = (meta_version(message) for message in self.body.messages)
        return any(present and version not in HANDSHAKE_VERSIONS for present, version in named)


def carried(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    """The lines of a client's request that requests of the worker's own repeat."""
    found = {name: headers.getall(name, []) for name in _CARRIED}
    return {
        name: values[0]
        for name, values in found.items()
        if len(values) == 1 and values[0].isascii() and values[0].isprintable()
    }

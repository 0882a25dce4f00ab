"""Messages between DTMA and its session broker: one per packet of a SOCK_SEQPACKET socket pair.

The broker speaks the servers' transport and holds no rights of its own. It asks for a session by ids only; DTMA looks
at the grant again, and either makes a container and passes the stream to its process along with `SessionOpened`, or
says there where the container that stands is reached.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from toolbox_dtma.link.messages import Message
from toolbox_dtma.wire.base import Uid, absent

MAX_PACKET_BYTES = 64 * 1024
BACKLOG = 4096
"""Connections that may wait until the broker has time for them, or is there again. On a unix socket those beyond are
refused at once, however soon they would be taken; the kernel may allow fewer (net.core.somaxconn)."""


class BrokerReady(Message):
    """The broker's first message: from now on its socket answers."""

    kind: Literal["ready"] = "ready"
    pid: int


class OpenSession(Message):
    """A session of its own for a connection, or for a probe."""

    kind: Literal["open"] = "open"
    request: int
    """Names the answer."""
    instance: Uid
    connection: Annotated[str, Field(max_length=128)] = ""
    """UID of the connection, as the gateway's worker named it; empty for a probe."""
    ticket: Annotated[str, Field(max_length=128, repr=False)] = ""
    """What DTMA gave out with the request for a probe; empty for a connection."""
    route: Annotated[str, Field(max_length=128)] = ""
    """Incarnation of the route by which the worker came; empty where it did not say."""


class Closing(StrEnum):
    """Why the broker ends a session."""

    CLIENT = "client"
    """It was deleted by its client, or was never begun."""
    IDLE = "idle"
    """Nothing was said for the idle time."""
    ENDED = "ended"
    """The process closed its output, or the server its event stream."""
    PROTOCOL = "protocol"
    """The server sent what is no message, or one that is too large, or does not speak its transport."""
    UNREACHABLE = "unreachable"
    """Nothing listens where the server should."""


class CloseSession(Message):
    """The broker has let go of a session; its container is not needed any more."""

    kind: Literal["close"] = "close"
    session: str
    why: Closing


class Upstream(BaseModel):
    """Where a server of the SSE transport listens, for all of its sessions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    port: int
    path: str
    """Of its event stream."""


class SessionOpened(Message):
    """A session. Without `upstream` the packet carries one file descriptor: a stream socket whose input is the
    process's stdin, and whose output is its stdout and stderr in the frames of Docker's attach stream (a byte for the
    stream, three zeros, the length in four bytes big-endian, and that many bytes)."""

    kind: Literal["opened"] = "opened"
    request: int
    session: str
    idle_seconds: Annotated[float, Field(gt=0)]
    incarnation: Annotated[str, Field(max_length=256)] = ""
    """Of what the process is made; equal for processes of one deployment only."""
    upstream: Annotated[Upstream | None, Field(exclude_if=absent)] = None


class Refused(StrEnum):
    """Why there is no session."""

    UNKNOWN = "unknown"
    """No such instance, or the connection has no grant for it."""
    STOPPED = "stopped"
    """The server is not meant to run now, or is not deployed yet."""
    FULL = "full"
    """As many sessions as the server may have are open."""
    FAILED = "failed"
    """The container could not be made or started."""


class SessionRefused(Message):
    """There is no session."""

    kind: Literal["refused"] = "refused"
    request: int
    why: Refused
    message: Annotated[str, Field(max_length=512)]
    """A sentence for the client, without anything of the host's."""
    retry_seconds: Annotated[float | None, Field(ge=0)] = None


class Ended(StrEnum):
    """Why DTMA ends a session."""

    EXITED = "exited"
    """The process is gone."""
    STOPPED = "stopped"
    """The server was stopped, changed or removed."""
    REVOKED = "revoked"
    """The connection is gone, or may not use the server any more."""
    ENGINE = "engine"
    """Docker is gone."""


class SessionEnded(Message):
    """A session is over; what waits for an answer gets an error."""

    kind: Literal["ended"] = "ended"
    session: str
    why: Ended
    message: Annotated[str, Field(max_length=512)]
    """A sentence for the client, without anything of the host's."""


class BrokerPing(Message):
    """Whether the broker still serves: it answers with `BrokerPong`, from where it answers everything else."""

    kind: Literal["ping"] = "ping"


class BrokerPong(Message):
    """It does."""

    kind: Literal["pong"] = "pong"


AnyFromBroker = BrokerReady | OpenSession | CloseSession | BrokerPong
AnyToBroker = SessionOpened | SessionRefused | SessionEnded | BrokerPing

FROM_BROKER: TypeAdapter[AnyFromBroker] = TypeAdapter(Annotated[AnyFromBroker, Field(discriminator="kind")])
TO_BROKER: TypeAdapter[AnyToBroker] = TypeAdapter(Annotated[AnyToBroker, Field(discriminator="kind")])

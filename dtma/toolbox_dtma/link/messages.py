"""Messages on the gateway socket. Every frame is a 4-byte big-endian length and that many bytes of JSON.

DTMA speaks first with the snapshot, in parts that fit a frame, then sends deltas; a worker acknowledges each
revision once every request it handles from then on obeys it.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from toolbox_dtma.link.calls import MAX_ENTRIES, CallEntry, Count, Dropped, Refusals
from toolbox_dtma.wire import Credential, Expose, GrantLimits, HostConfig, ProbeReport
from toolbox_dtma.wire.base import absent

LINK_VERSION = 1
MAX_FRAME_BYTES = 1024 * 1024


def _empty(value: object) -> bool:
    return value == ""


def _none_at_all(value: object) -> bool:
    return value == 0


class Message(BaseModel):
    """Base of all messages; `v` is refused if it is not ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1


class Surface(BaseModel):
    """Names of all that a server listed at its last probe; None where it could not list them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: tuple[str, ...] = ()
    """A name is there once for each definition that the server showed under it."""
    hashes: tuple[str, ...] = ()
    """Of the definition of each of `tools`, in their order; shorter where they are not known."""
    prompts: tuple[str, ...] | None = ()
    resources: tuple[str, ...] | None = ()
    """URIs, and the `uriTemplate` of templates."""

    def size(self) -> int:
        """Bytes of all names and hashes."""
        lists = (self.tools, self.hashes, self.prompts, self.resources)
        return sum(len(text.encode()) for texts in lists for text in texts or ())


class InstanceRoute(BaseModel):
    """Where an instance's container listens. `address` is None while nothing runs, and where `bridge` is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    incarnation: str
    """Changes with every container start; session ids of an older one are refused with 404."""
    address: str | None
    port: int
    path: str
    state: Literal["running", "stopped", "unavailable"]
    surface: Surface | None = None
    """None before the first probe."""
    bridge: Annotated[str | None, Field(exclude_if=absent)] = None
    """Path of the session broker's unix socket, for a server that speaks stdio or SSE; `port` is 0."""
    approvals: dict[str, tuple[int, ...]] = {}
    """For each `approvedHash` that is in force here: which of `surface.tools` it approves, by their places."""


class GrantPolicy(BaseModel):
    """One connection as a worker needs it. Both filters apply, unmerged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: str
    instance: str
    credentials: tuple[Credential, ...]
    server_expose: Expose
    expose: Expose
    expires_at: datetime | None = None
    limits: Annotated[GrantLimits | None, Field(exclude_if=absent)] = None


class SigningKey(BaseModel):
    """One key of the session id key ring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kid: str
    secret: Annotated[str, Field(repr=False)]
    """32 random bytes, base64url without padding."""


class KeyRing(BaseModel):
    """Keys that verify session ids; `signing` names the one that signs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signing: str
    keys: tuple[SigningKey, ...]


class Change(BaseModel):
    """A set of puts and deletes that a worker applies as one step. Absent fields change nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instances: tuple[InstanceRoute, ...] = ()
    instances_gone: tuple[str, ...] = ()
    grants: tuple[GrantPolicy, ...] = ()
    grants_gone: tuple[str, ...] = ()
    keyring: KeyRing | None = None
    config: HostConfig | None = None


class Snapshot(Message):
    """One part of the whole policy. The worker replaces what it had when the last part arrived, then acks."""

    kind: Literal["snapshot"] = "snapshot"
    revision: int
    part: int
    """Counts from 0; the last one is `parts - 1`."""
    parts: int
    change: Change


class Delta(Message):
    """A change that makes the policy `revision`."""

    kind: Literal["delta"] = "delta"
    revision: int
    change: Change


class Ping(Message):
    """Liveness: a worker that has not answered within 300 ms while an ack is awaited is killed by DTMA."""

    kind: Literal["ping"] = "ping"
    nonce: int


class ProbeRequest(Message):
    """Hold an MCP conversation with this address (readiness probe)."""

    kind: Literal["probe"] = "probe"
    probe: int
    address: str
    port: int
    path: str
    deadline: float
    """Seconds for the whole conversation."""
    start: Annotated[float, Field(exclude_if=_none_at_all)] = 0.0
    """Seconds more for the processes that are started for it, until they answer."""
    bridge: Annotated[str | None, Field(exclude_if=absent)] = None
    """Path of the session broker's unix socket, in place of address (empty) and port (0)."""
    ticket: Annotated[str, Field(max_length=128, repr=False, exclude_if=_empty)] = ""
    """What the broker shows DTMA for a session of the probe's own."""

    @property
    def longest(self) -> float:
        """Seconds that all of it may take."""
        return self.deadline + self.start


class Hello(Message):
    """A worker's first message, before the snapshot."""

    kind: Literal["hello"] = "hello"
    worker: str
    pid: int
    revision: int
    """The last revision this worker applied, 0 if none."""


class Ack(Message):
    """Every request this worker handles from now on obeys `revision`; revoked streams are closed."""

    kind: Literal["ack"] = "ack"
    revision: int


class Pong(Message):
    """Answer to `Ping`."""

    kind: Literal["pong"] = "pong"
    nonce: int


class ProbeResult(Message):
    """Answer to `ProbeRequest`, with all names for the policy."""

    kind: Literal["probe-result"] = "probe-result"
    probe: int
    report: ProbeReport
    surface: Surface = Surface()
    refused: bool = False
    """Nothing listens on the port: the TCP connection was refused."""


class Cut(StrEnum):
    """Why a client's connection was refused or ended, beside what its requests are refused for."""

    TOTAL = "total"
    """All connections of the worker are taken."""
    SOURCE = "source"
    """All connections of this source are taken."""
    DESCRIPTORS = "descriptors"
    """The worker had no file descriptor left."""
    HANDSHAKE = "handshake"
    """TLS failed or took too long."""
    HEAD_SLOW = "head-slow"
    HEAD_LARGE = "head-large"
    STALLED = "stalled"
    """It did not take its answer."""


class Vitals(Message):
    """How a worker fares. Sent now and then; `cuts` counts since the last one."""

    kind: Literal["vitals"] = "vitals"
    connections: Annotated[int, Field(ge=0)]
    cuts: dict[Cut, Annotated[int, Field(ge=0)]] = {}
    certificate_expires: float | None = None
    """Unix time; None over plain HTTP."""
    certificate_refused: bool = False
    """Whether the certificate's files hold a pair that cannot be used."""


class Calls(Message):
    """What happened at a worker since its last message. It waits for `CallsTaken` before the next one, and after a
    lost connection it sends the same again under the same number."""

    kind: Literal["calls"] = "calls"
    stream: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Names the row of batches; outlives the worker's process."""
    batch: Count
    """Counts up within the stream."""
    calls: Annotated[tuple[CallEntry, ...], Field(max_length=MAX_ENTRIES)] = ()
    dropped: Dropped = {}
    """Calls for whose record there was no room, by connection."""
    lost: Count = 0
    """Calls of which nothing is known any more: they ran when a worker was killed."""
    refusals: Refusals = {}
    """Requests that the gateway answered by itself, by reason."""


class CallsTaken(Message):
    """Answer to `Calls`: it is on disk, or counted as dropped, and need not be kept."""

    kind: Literal["calls-taken"] = "calls-taken"
    stream: str
    batch: int


ToWorker = Annotated[Snapshot | Delta | Ping | ProbeRequest | CallsTaken, Field(discriminator="kind")]
ToDtma = Annotated[Hello | Ack | Pong | ProbeResult | Calls | Vitals, Field(discriminator="kind")]

TO_WORKER: TypeAdapter[Snapshot | Delta | Ping | ProbeRequest | CallsTaken] = TypeAdapter(ToWorker)
TO_DTMA: TypeAdapter[Hello | Ack | Pong | ProbeResult | Calls | Vitals] = TypeAdapter(ToDtma)

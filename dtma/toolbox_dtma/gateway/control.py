"""What supervisor and worker tell each other, one JSON message a packet over a SOCK_SEQPACKET socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from structlog.typing import FilteringBoundLogger

MAX_PACKET_BYTES = 160 * 1024
"""A certificate and its key, each at most 64 KiB, and a little more. The kernel's own bound is above that."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Certificate(_Message):
    """To a worker: what new TLS connections are to be served with, from now on."""

    kind: Literal["certificate"] = "certificate"
    pem: Annotated[bytes, Field(repr=False)]
    expires: float
    """Unix time."""
    refused: bool = False
    """Whether the files hold something else, which cannot be used."""


class Drain(_Message):
    """To a worker: another one serves on the same socket; end, but let every client leave in peace."""

    kind: Literal["drain"] = "drain"


class Serving(_Message):
    """From a worker: it accepts connections."""

    kind: Literal["serving"] = "serving"


TO_WORKER: TypeAdapter[Certificate | Drain] = TypeAdapter(Annotated[Certificate | Drain, Field(discriminator="kind")])


class Control:
    """A worker's end. Nothing here waits: packets are whole, and the supervisor reads at once or has ended."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        certificate: Callable[[Certificate], None],
        drain: Callable[[], None],
        log: FilteringBoundLogger,
    ):
        """The callbacks run in the event loop's thread."""
        connection.setblocking(False)
        self._connection = connection
        self._certificate = certificate
        self._drain = drain
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._read)

    def serving(self) -> None:
        """Tell that connections are accepted. Raises `OSError`."""
        self._connection.send(Serving().model_dump_json().encode())

    def close(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()

    def _read(self) -> None:
        try:
            packet = self._connection.recv(MAX_PACKET_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        if not packet:
            # The supervisor has ended, and the kernel is about to end this process, too.
            self._loop.remove_reader(self._connection.fileno())
            return
        try:
            message = TO_WORKER.validate_json(packet)
        except ValidationError:
            # A supervisor of another version, after an upgrade. The error itself would quote a key.
            self._log.warning("supervisor-not-understood")
            return
        match message:
            case Certificate():
                self._certificate(message)
            case Drain():
                self._drain()

"""DTMA's end of the control link to its session broker: a message per packet, a socket passed along with some."""

from __future__ import annotations

import asyncio
import socket
from collections import deque

from pydantic import ValidationError

from toolbox_dtma.link.broker import (
    FROM_BROKER,
    MAX_PACKET_BYTES,
    AnyFromBroker,
    AnyToBroker,
)

MAX_WAITING = 2048
"""Packets that the broker may leave unread: more than one for every session of a large host."""


class LinkBroken(Exception):
    """The broker said what is not in the protocol, or does not listen or answer. It has to be replaced."""


class ControlLink:
    """One broker's. Owns its socket, and every socket it is asked to pass on."""

    def __init__(self, connection: socket.socket) -> None:
        """`connection`: one end of a SOCK_SEQPACKET pair."""
        connection.setblocking(False)
        self._connection = connection
        self._waiting: deque[tuple[bytes, socket.socket | None]] = deque()
        self._closed = False
        self._broken: str | None = None
        """Why it was given up."""

    def send(self, message: AnyToBroker, stream: socket.socket | None = None) -> None:
        """Say something, with a socket or without. A broker that is gone, or does not listen any more, hears nothing:
        that is for whoever receives to find out.
        """
        if self._closed or self._broken is not None:
            _close(stream)
            return
        if len(self._waiting) >= MAX_WAITING:
            _close(stream)
            self.give_up("it does not read what it is told")
            return
        self._waiting.append((message.model_dump_json().encode(), stream))
        if len(self._waiting) == 1:
            self._flush()

    def give_up(self, why: str) -> None:
        """Have `receive` raise `LinkBroken`, for this reason."""
        if not self._closed and self._broken is None:
            self._broken = why
            self._connection.shutdown(socket.SHUT_RDWR)

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            packet, stream = self._waiting[0]
            try:
                socket.send_fds(self._connection, [packet], [stream.fileno()] if stream is not None else [])
            except BlockingIOError:
                loop.add_writer(self._connection, self._flush)
                return
            except (BrokenPipeError, ConnectionResetError):
                # It has ended, which `receive` finds too.
                self._drop_waiting()
                break
            self._waiting.popleft()
            _close(stream)
        loop.remove_writer(self._connection)

    def _drop_waiting(self) -> None:
        while self._waiting:
            _close(self._waiting.popleft()[1])

    async def receive(self) -> AnyFromBroker | None:
        """The next message; None once it has ended. Raises `LinkBroken`."""
        try:
            packet = await asyncio.get_running_loop().sock_recv(self._connection, MAX_PACKET_BYTES + 1)
        except ConnectionResetError:
            return None
        if self._broken is not None:
            raise LinkBroken(self._broken)
        if not packet:
            return None
        if len(packet) > MAX_PACKET_BYTES:
            raise LinkBroken(f"it sent a packet of more than {MAX_PACKET_BYTES} bytes")
        try:
            return FROM_BROKER.validate_json(packet)
        except ValidationError:
            # Its text would quote what was sent.
            raise LinkBroken("it sent what is no message") from None

    def close(self) -> None:
        """Hang up."""
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().remove_writer(self._connection)
            self._drop_waiting()
            self._connection.close()


def _close(stream: socket.socket | None) -> None:
    if stream is not None:
        stream.close()

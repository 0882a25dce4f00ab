"""What runs behind a broker under test: real processes behind a small muxer, or a test that speaks for one."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Protocol, cast

from toolbox_dtma.broker.eras import META, PING
from toolbox_dtma.link.broker import OpenSession, SessionRefused, Upstream

_OUTPUT, _ERRORS = 1, 2


def frame(payload: bytes, stream: int = _OUTPUT) -> bytes:
    """One frame of Docker's attach stream."""
    return struct.pack(">BxxxI", stream, len(payload)) + payload


class Process(Protocol):
    """Something that runs for one session."""

    broker_end: socket.socket
    """What is passed to the broker."""

    def kill(self) -> None:
        """End it, as DTMA does once a session is closed."""
        ...


Program = Callable[[OpenSession], "Process | SessionRefused | Upstream"]
"""Starts a process for a session, or says where its server is, or why there is none."""


class Spawned:
    """A process of the operating system; what it writes is put into frames, as the engine does."""

    def __init__(self, argv: list[str], env: dict[str, str] | None = None):
        self._ours, self.broker_end = socket.socketpair()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **(env or {})}, bufsize=0
        )
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        self._frames = threading.Lock()
        copies = [(self._out, stdout, _OUTPUT), (self._out, stderr, _ERRORS)]
        self._threads = [threading.Thread(target=work, args=(pipe, number)) for work, pipe, number in copies]
        self._threads.append(threading.Thread(target=self._in, args=(stdin,)))
        self._waiting = threading.Thread(target=self._end)
        for thread in (*self._threads, self._waiting):
            thread.daemon = True
            thread.start()

    def _out(self, pipe: IO[bytes], stream: int) -> None:
        with pipe:
            while data := pipe.read(32 * 1024):
                try:
                    with self._frames:
                        self._ours.sendall(frame(data, stream))
                except OSError:
                    return

    def _in(self, pipe: IO[bytes]) -> None:
        try:
            with pipe:
                while data := self._ours.recv(32 * 1024):
                    while data:
                        data = data[pipe.write(data) :]
        except OSError:
            return

    def _end(self) -> None:
        for thread in self._threads[:2]:
            thread.join()
        self.process.wait()
        try:
            self._ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The broker has closed its end already.
            pass
        self._threads[2].join()
        self._ours.close()

    def kill(self) -> None:
        """See `Process`."""
        self.process.kill()
        self._waiting.join(10)
        assert not self._waiting.is_alive(), "a process or its muxer did not end"


class Scripted:
    """A test in the place of a process."""

    def __init__(self, request: OpenSession) -> None:
        self.request = request
        self.hears_pings = False
        """Whether `heard` shows pings of the broker, which asks a process that is slow to speak for a sign of life."""
        self._ours, self.broker_end = socket.socketpair()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def attach(self) -> None:
        """Belong to the running event loop."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._ours, limit=16 << 20)

    async def heard(self) -> Any:
        """The next message from the broker."""
        while True:
            message = json.loads(await self.line())
            if self.hears_pings or not is_own_ping(message):
                return message
            self.say({"jsonrpc": "2.0", "id": message["id"], "result": {}})

    async def line(self) -> bytes:
        """The next line, as it was written."""
        assert self._reader is not None
        async with asyncio.timeout(10):
            return await self._reader.readline()

    def say(self, *documents: Any) -> None:
        """Write messages, a line each."""
        self.write(b"".join(json.dumps(document).encode() + b"\n" for document in documents))

    def write(self, raw: bytes, *, errors: bool = False) -> None:
        """Write bytes."""
        self.send(frame(raw, _ERRORS if errors else _OUTPUT))

    def send(self, raw: bytes) -> None:
        """Send bytes without a frame of their own."""
        assert self._writer is not None
        self._writer.write(raw)

    @property
    def unsent(self) -> int:
        """Bytes that the broker has not taken."""
        assert self._writer is not None
        return self._writer.transport.get_write_buffer_size()

    def pause(self) -> None:
        """Take no input for the time being."""
        self._transport().pause_reading()

    def resume(self) -> None:
        """Take input again."""
        self._transport().resume_reading()

    def _transport(self) -> asyncio.Transport:
        assert self._writer is not None and isinstance(self._writer.transport, asyncio.Transport)
        return self._writer.transport

    async def until_sent(self) -> None:
        """Wait until nearly all was taken."""
        assert self._writer is not None
        async with asyncio.timeout(10):
            await self._writer.drain()

    async def ended(self) -> None:
        """Wait until the broker has closed its end; what it still said is dropped."""
        assert self._reader is not None
        async with asyncio.timeout(10):
            while True:
                try:
                    if not await self._reader.read(1 << 20):
                        return
                except OSError:
                    return

    def end(self) -> None:
        """Close the stream, as a process that exits does."""
        assert self._writer is not None
        self._writer.close()

    def kill(self) -> None:
        """See `Process`."""
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Let go of the stream, at the end of a test."""
        self.broker_end.close()
        if self._writer is None:
            self._ours.close()
            return
        if not self._writer.transport.is_closing():
            self._writer.transport.abort()
        with suppress(OSError):
            async with asyncio.timeout(5):
                await self._writer.wait_closed()


def is_own_ping(message: Any) -> bool:
    """Whether the broker itself asks for a sign of life."""
    if not isinstance(message, dict):
        return False
    said = cast("dict[str, Any]", message)
    return said.get("method") == PING and said.get("params", {}).get("_meta") == META


class Script:
    """A program whose processes are written by a test."""

    def __init__(self) -> None:
        self._started: queue.SimpleQueue[Scripted] = queue.SimpleQueue()
        self._all: list[Scripted] = []

    def __call__(self, request: OpenSession) -> Process:
        process = Scripted(request)
        self._all.append(process)
        self._started.put(process)
        return process

    async def process(self) -> Scripted:
        """The next one that was started."""
        process = await asyncio.to_thread(self._started.get, timeout=10)
        await process.attach()
        return process

    async def initialized(self, result: dict[str, Any] | None = None) -> Scripted:
        """The next one, once it has answered its handshake."""
        process = await self.process()
        asked = await process.heard()
        assert asked["method"] == "initialize"
        process.say({"jsonrpc": "2.0", "id": asked["id"], "result": result or INITIALIZED})
        return process

    async def close(self) -> None:
        """Let go of all of them."""
        for process in self._all:
            await process.close()


INITIALIZED: dict[str, Any] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "scripted", "version": "1"},
}

"""A TCP proxy on loopback that tests cut, freeze, or make swallow the server's answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from localstack.ports import free_port

ClientBytes = Callable[[bytes], bool]


class Proxy:
    """Forwards connections to one address."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        # Not of the kernel's choice: it would give it to a client while nobody listens on it.
        self.port = free_port()
        self.cut_when: ClientBytes | None = None
        """Asked for every piece the client sends; when true it is forwarded, and the client is cut off before it can
        hear an answer. Then it is not asked again."""
        self.freeze_when: ClientBytes | None = None
        """Asked likewise; when true the proxy freezes before it is forwarded."""
        self.accepted = 0

    async def open(self) -> None:
        """Listen (again, on the port it had)."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Refuse new connections and cut the ones there are."""
        if self._server is not None:
            self._server.close()
        self.cut()
        if self._server is not None:
            await self._server.wait_closed()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Cut every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def freeze(self) -> None:
        """Keep connections and accept new ones, but pass nothing on."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass on what was held back."""
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, upstream_writer}
        for pump in (
            self._pump(reader, upstream_writer, writer, from_client=True),
            self._pump(upstream_reader, writer, upstream_writer, from_client=False),
        ):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        *,
        from_client: bool,
    ) -> None:
        try:
            while data := await source.read(65536):
                if from_client and self.freeze_when is not None and self.freeze_when(data):
                    self.freeze_when = None
                    self.freeze()
                await self._flowing.wait()
                if from_client and self.cut_when is not None and self.cut_when(data):
                    self.cut_when = None
                    back.transport.abort()
                sink.write(data)
                await sink.drain()
        except (ConnectionError, OSError):
            pass  # One side went away: so does the other.
        finally:
            self._writers.discard(sink)
            sink.close()


@asynccontextmanager
async def proxy_to(host: str, port: int) -> AsyncGenerator[Proxy]:
    """A listening proxy, closed at the end."""
    proxy = Proxy(host, port)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.thaw()
        await proxy.close()

"""The TCP proxy of `support.proxies.tcp_proxy` in a thread of its own, for tests that do not run in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from support.proxies.tcp_proxy import ClientBytes, Proxy

_DEADLINE = 10.0


class BackgroundProxy:
    """Forwards connections to one address; transparent until told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._proxy = Proxy(host, port)
        self._do(self._proxy.open())

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._proxy.port

    def away(self) -> None:
        """Cut every connection and refuse new ones."""
        self._do(self._proxy.close())

    def back(self) -> None:
        """Listen again."""
        self._do(self._proxy.open())

    def cut_when(self, asked: ClientBytes) -> None:
        """See `Proxy.cut_when`."""

        async def arm() -> None:
            self._proxy.cut_when = asked

        self._do(arm())

    def freeze_when(self, asked: ClientBytes) -> threading.Event:
        """See `Proxy.freeze_when`; the event is set when it has frozen."""
        frozen = threading.Event()

        def seen(data: bytes) -> bool:
            if asked(data):
                frozen.set()
            return frozen.is_set()

        async def arm() -> None:
            self._proxy.freeze_when = seen

        self._do(arm())
        return frozen

    def thaw(self) -> None:
        """Pass on what was held back."""

        async def go() -> None:
            self._proxy.thaw()

        self._do(go())

    def in_front_of(self, dsn: str) -> str:
        """The connection URL, through the proxy."""
        parts = urlsplit(dsn)
        return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self.port}").geturl()

    def close(self) -> None:
        """Cut everything and end the thread."""
        self.thaw()
        self._do(self._proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_DEADLINE)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=_DEADLINE)


@contextmanager
def proxy_in_background(host: str, port: int) -> Generator[BackgroundProxy]:
    """A listening proxy, closed at the end."""
    proxy = BackgroundProxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()

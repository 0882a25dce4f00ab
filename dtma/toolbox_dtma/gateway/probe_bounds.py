"""What bounds the conversation of a probe: time, requests and bytes, whatever the server does (design §3, §5)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from toolbox_dtma.gateway.shown_tools import ShownTools

MAX_REQUESTS = 250
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
MAX_CONVERSATION_BYTES = 8 * 1024 * 1024
CLOSING_SECONDS = 1.0
"""What the farewell (DELETE of the session) may take beyond the deadline."""


class OutOfBounds(httpx2.TransportError):
    """A bound was met: raised into the SDK, which ends the conversation."""


@dataclass(slots=True)
class Budget:
    """What is left of one conversation, and what ended it."""

    now: Callable[[], float]
    deadline: float
    start: float = 0.0
    """Seconds beyond it that are left for processes to start; other uses of time do not touch them."""
    started: float = 0.0
    """What they have taken so far."""
    requests: int = MAX_REQUESTS
    bytes: int = MAX_CONVERSATION_BYTES
    failure: str | None = None
    refused: bool = False

    def fail(self, why: str) -> OutOfBounds:
        """Remember the first failure: what the SDK makes of it later is less clear."""
        self.failure = self.failure or why
        return OutOfBounds(why)

    def seconds(self, method: str) -> float:
        """Time left for a request."""
        left = self.deadline - self.now() + (CLOSING_SECONDS if method == "DELETE" else 0.0)
        if left <= 0:
            raise self.fail("it did not answer in time")
        return left

    @contextmanager
    def starting(self) -> Generator[None]:
        """While a process may have to start: what it takes is no part of the conversation, as far as `start` goes."""
        began, self.deadline = self.now(), self.deadline + self.start
        try:
            yield
        finally:
            took = min(self.now() - began, self.start)
            self.start, self.started = self.start - took, self.started + took
            self.deadline -= self.start


class BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, budget: Budget, method: str, read: Callable[[bytes, bool], None]):
        self._inner = inner
        self._budget = budget
        self._method = method
        self._read = read

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        chunks = self._inner.__aiter__()
        while True:
            try:
                async with asyncio.timeout(self._budget.seconds(self._method)):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                self._read(b"", True)
                return
            except TimeoutError:
                raise self._budget.fail("it did not answer in time") from None
            received += len(chunk)
            self._budget.bytes -= len(chunk)
            if received > MAX_RESPONSE_BYTES or self._budget.bytes < 0:
                raise self._budget.fail("it answered with too much data")
            self._read(chunk, False)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Limits time, requests and bytes; refuses redirects and encodings; keeps no cookies; tells what it reads."""

    def __init__(self, budget: Budget, shown: ShownTools, bridge: str | None):
        # Plain HTTP to a container: certificates are never looked at, and loading them takes 20 ms.
        self._inner = httpx2.AsyncHTTPTransport(verify=False, trust_env=False, uds=bridge)
        self._bridged = bridge is not None
        self._budget = budget
        self._shown = shown

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        budget = self._budget
        budget.requests -= 1
        if budget.requests < 0:
            raise budget.fail("it kept the conversation going for too long")
        try:
            async with asyncio.timeout(budget.seconds(request.method)):
                response = await self._inner.handle_async_request(request)
        except TimeoutError:
            raise budget.fail("it did not answer in time") from None
        except httpx2.ConnectError as error:
            if self._bridged:
                raise budget.fail("the session broker does not answer") from None
            budget.refused = _was_refused(error)
            raise budget.fail(
                "nothing listens on its port" if budget.refused else "it cannot be connected to"
            ) from None
        except httpx2.TransportError as error:
            raise budget.fail(f"the connection broke ({type(error).__name__})") from None
        if 300 <= response.status_code < 400:
            await response.aclose()
            raise budget.fail(f"it answered with a redirect ({response.status_code})")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise budget.fail("it answered with an encoding that was not asked for")
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"set-cookie"]
        kind = response.headers.get("content-type", "")
        stream = response.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise budget.fail("it answered in an unknown way")
        return httpx2.Response(
            response.status_code,
            headers=headers,
            stream=BoundedStream(stream, budget, request.method, self._shown.reader(kind)),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


def _was_refused(error: BaseException | None) -> bool:
    while error is not None and not (isinstance(error, OSError) and error.errno == errno.ECONNREFUSED):
        error = error.__cause__ or error.__context__
    return error is not None

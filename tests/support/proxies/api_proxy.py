"""A reverse proxy before an HTTP API that tests program: it refuses, holds, loses and falsifies what passes it.

It stands before the Kubernetes API (plain HTTP to the operator, whose token passes through) and, with a certificate
of its own, before a host's management API. Watches and event streams pass piece by piece. It runs in a thread, so
that a test can go on while requests are held. Everything that passed is in `journal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from localstack.ports import free_port
from support.proxies.faults import (
    Action,
    Answer,
    Cut,
    Drop,
    Event,
    EventMatch,
    Exchange,
    Fail,
    Fault,
    Hide,
    Hold,
    HoldAnswer,
    Lose,
    Match,
    Refuse,
    Request,
    Silence,
    Slow,
    StreamAction,
    StreamFault,
    Truncate,
)

STREAM_CHUNK = 65536
UPSTREAM_DEADLINE = 60.0
"""Seconds for an answer that is no stream."""
MAX_PROBLEM = 1000
_PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/[^/]+(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+))?$"
)
_VERBS = {"POST": "create", "PUT": "replace", "PATCH": "patch", "DELETE": "delete"}
# Of one connection, or computed anew; and answers have to stay readable for faults that change them.
_OWN_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "keep-alive"})


@dataclass(slots=True, eq=False)
class _Stream:
    """An open watch."""

    resource: str
    silent: bool = False
    orders: asyncio.Queue[StreamAction] = field(default_factory=asyncio.Queue[StreamAction])


class ApiProxy:
    """The proxy; a context manager. `url` is where it listens."""

    def __init__(self, upstream: str, ca: ssl.SSLContext, *, tls: ssl.SSLContext | None = None) -> None:
        """`ca` verifies the server behind; `tls` is the proxy's own certificate, None for plain HTTP."""
        self._upstream = upstream.rstrip("/")
        self._ca = ca
        self._tls = tls
        # Not of the kernel's choice: it would give it to a client while nobody listens on it.
        self._port = free_port()
        self.journal: list[Exchange] = []
        self._faults: list[Fault] = []
        self._stream_faults: list[StreamFault] = []
        self._streams: set[_Stream] = set()
        self._faulty_work: set[asyncio.Task[web.StreamResponse]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-proxy", daemon=True)
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def fault(self, match: Match, action: Action, *, skip: int = 0, times: int | None = None) -> Fault:
        """From now on; of several that match a request, the first one added takes it."""
        fault = Fault(match, action, skip, times)
        fault.gate.bind(self._loop)
        self._faults.append(fault)
        return fault

    def stream_fault(
        self, match: EventMatch, action: StreamAction, *, skip: int = 0, times: int | None = 1
    ) -> StreamFault:
        """From now on, for events of watches."""
        fault = StreamFault(match, action, skip, times)
        self._stream_faults.append(fault)
        return fault

    def interrupt(self, resource: str, action: Silence | Cut | Fail) -> int:
        """Do it now to every open watch of a resource ("" for all of them). Returns to how many."""
        hit = [stream for stream in set(self._streams) if resource in ("", stream.resource)]
        for stream in hit:
            self._loop.call_soon_threadsafe(stream.orders.put_nowait, action)
        return len(hit)

    def watching(self, resource: str) -> int:
        """How many watches of a resource are open."""
        return sum(stream.resource == resource for stream in set(self._streams))

    def clear(self) -> None:
        """No faults any more; what is held goes on. Streams that were silenced are cut."""
        faults, self._faults, self._stream_faults = self._faults, [], []
        for fault in faults:
            fault.release()
        for stream in [stream for stream in set(self._streams) if stream.silent]:
            self._loop.call_soon_threadsafe(stream.orders.put_nowait, Cut())

    def remove(self, *faults: Fault) -> None:
        """Take back these faults only; what they hold goes on."""
        self._faults = [fault for fault in self._faults if fault not in faults]
        for fault in faults:
            fault.release()

    def mark(self) -> int:
        """The present end of the journal, for `since`."""
        return len(self.journal)

    def since(self, mark: int, match: Match = lambda _: True) -> list[Exchange]:
        """What passed after a mark."""
        return [exchange for exchange in self.journal[mark:] if match(exchange.request)]

    def away(self) -> None:
        """Listen no more and cut every connection: the server is gone."""
        self._run(self._unserve())

    def back(self) -> None:
        """Listen again, on the same port."""
        self._run(self._serve())

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._ca, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
            trust_env=False,
        )
        await self._serve()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        # A client that goes away ends what was done for it; what a fault has taken over goes on.
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, auto_decompress=False, handler_cancellation=True
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port, ssl_context=self._tls, reuse_address=True).start()
        self._runner = runner

    async def _unserve(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _close(self) -> None:
        await self._unserve()
        if self._session is not None:
            await self._session.close()
        # What the streams' handlers left behind has to end before the loop does.
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.sleep(0.05)  # TLS says goodbye in later turns of the loop

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        exchange = Exchange(_understood(incoming, await incoming.read()))
        self.journal.append(exchange)
        for fault in list(self._faults):
            if fault.takes(exchange.request):
                work = asyncio.create_task(self._faulty(fault, exchange, incoming))
                self._faulty_work.add(work)
                work.add_done_callback(self._faulty_work.discard)
                return await asyncio.shield(work)
        return await self._pass(exchange, incoming)

    async def _faulty(self, fault: Fault, exchange: Exchange, incoming: web.Request) -> web.StreamResponse:
        match fault.action:
            case Refuse(status, reason, retry_after):
                return self._tell(exchange, _status(status, reason, retry_after))
            case Answer(body):
                return self._tell(exchange, web.Response(body=body, content_type="application/json"))
            case Drop():
                _abort(incoming)
                return web.Response(status=502)
            case Lose():
                await self._ask(exchange)
                _abort(incoming)
                return web.Response(status=502)
            case Hold():
                await fault.gate.passed()
                return await self._pass(exchange, incoming)
            case HoldAnswer():
                answer = await self._ask(exchange)
                await fault.gate.passed()
                return self._tell(exchange, answer)
            case Slow(seconds):
                await asyncio.sleep(seconds)
                return await self._pass(exchange, incoming)
            case Truncate():
                answer = await self._ask(exchange)
                whole = cast("bytes", answer.body)
                answer.body = whole[: len(whole) // 2]
                return self._tell(exchange, answer)

    def _tell(self, exchange: Exchange, answer: web.Response) -> web.Response:
        exchange.told, exchange.told_at = answer.status, time.monotonic()
        return answer

    async def _pass(self, exchange: Exchange, incoming: web.Request) -> web.StreamResponse:
        streams = exchange.request.verb == "watch" or "text/event-stream" in incoming.headers.get("Accept", "")
        try:
            if streams:
                return await self._relay(exchange, incoming)
            return self._tell(exchange, await self._ask(exchange))
        except (aiohttp.ClientError, TimeoutError, OSError):
            _abort(incoming)  # the server went away: so does the proxy
            return web.Response(status=502)

    def _upstream_request(self, request: Request) -> Any:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN_HEADERS}
        headers["Accept-Encoding"] = "identity"
        url = f"{self._upstream}{request.target}"
        return self._session.request(
            request.method, url, headers=headers, data=request.body or None, allow_redirects=False
        )

    async def _ask(self, exchange: Exchange) -> web.Response:
        async with asyncio.timeout(UPSTREAM_DEADLINE), self._upstream_request(exchange.request) as answer:
            body = await answer.read()
            exchange.answered = answer.status
            exchange.problem = body[:MAX_PROBLEM].decode(errors="replace") if answer.status >= 400 else ""
            return web.Response(status=answer.status, body=body, headers=_passed_on(answer.headers))

    async def _relay(self, exchange: Exchange, incoming: web.Request) -> web.StreamResponse:
        """Pass a stream on as it comes."""
        async with self._upstream_request(exchange.request) as answer:
            exchange.answered = exchange.told = answer.status
            exchange.told_at = time.monotonic()
            outgoing = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
            await outgoing.prepare(incoming)
            if exchange.request.verb != "watch" or answer.status != 200:
                async for chunk in answer.content.iter_any():
                    await outgoing.write(chunk)
                return outgoing
            stream = _Stream(exchange.request.resource)
            self._streams.add(stream)
            try:
                await self._relay_watch(stream, answer, outgoing, incoming)
            finally:
                self._streams.discard(stream)
            return outgoing

    async def _relay_watch(
        self, stream: _Stream, answer: aiohttp.ClientResponse, outgoing: web.StreamResponse, incoming: web.Request
    ) -> None:
        rest = b""
        while True:
            chunk = asyncio.ensure_future(answer.content.readany())
            order = asyncio.ensure_future(stream.orders.get())
            try:
                await asyncio.wait({chunk, order}, return_when=asyncio.FIRST_COMPLETED)
                if order.done():
                    return await self._obey(order.result(), stream, outgoing, incoming)
                data = chunk.result()
            finally:
                chunk.cancel()
                order.cancel()
                await asyncio.gather(chunk, order, return_exceptions=True)
            if not data:
                return None
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                action = self._befalls(stream, line)
                if action is None:
                    await outgoing.write(line + b"\n")
                elif not isinstance(action, Hide):
                    return await self._obey(action, stream, outgoing, incoming)

    def _befalls(self, stream: _Stream, line: bytes) -> StreamAction | None:
        faults = list(self._stream_faults)
        if not faults or not line.strip():
            return None
        parsed = json.loads(line)
        event = Event(stream.resource, parsed["type"], parsed["object"])
        return next((fault.action for fault in faults if fault.takes(event)), None)

    async def _obey(
        self, action: StreamAction, stream: _Stream, outgoing: web.StreamResponse, incoming: web.Request
    ) -> None:
        match action:
            case Fail(code, reason):
                error = {"type": "ERROR", "object": _status_document(code, reason)}
                await outgoing.write(json.dumps(error).encode() + b"\n")
            case Cut():
                _abort(incoming)
            case Silence():
                stream.silent = True
                while True:
                    order = await stream.orders.get()
                    if not isinstance(order, Silence):
                        return await self._obey(order, stream, outgoing, incoming)
            case Hide():
                return


def _understood(incoming: web.Request, body: bytes) -> Request:
    target = incoming.raw_path
    parts = _PATH.match(urlsplit(target).path)
    found = {name: value or "" for name, value in parts.groupdict().items()} if parts else {}
    found.pop("group", None)
    verb = _VERBS.get(incoming.method, "get" if found.get("name") else "list")
    if incoming.query.get("watch") in ("true", "1"):
        verb = "watch"
    if not parts:
        verb = ""
    return Request(time.monotonic(), incoming.method, target, dict(incoming.headers), body, verb, **found)


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _OWN_HEADERS}


def _status_document(code: int, reason: str) -> dict[str, Any]:
    message = f"a fault of the test: {reason}"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _status(code: int, reason: str, retry_after: int | None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response(_status_document(code, reason), status=code, headers=headers)


def _abort(incoming: web.Request) -> None:
    """Cut the client off, in the middle of whatever it reads."""
    transport = incoming.transport
    if isinstance(transport, asyncio.Transport):
        with contextlib.suppress(RuntimeError):
            transport.abort()

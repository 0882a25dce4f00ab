"""One request to a server and its answer back, as bytes wherever policy has nothing to say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from toolbox_dtma.gateway.event_ids import EventIds
from toolbox_dtma.gateway.exchanges import Cause, Exchange, Exchanges
from toolbox_dtma.gateway.filtering import Undecidable, filter_lists, listings
from toolbox_dtma.gateway.headers import EVENT_STREAM, SESSION, downstream_headers, media_type, unreadable
from toolbox_dtma.gateway.parsing import RpcId
from toolbox_dtma.gateway.refusal import SERVER_ERROR, Refusal, bad_gateway, rpc_error, unavailable
from toolbox_dtma.gateway.sessions import Binding, UpstreamIdUnusable
from toolbox_dtma.gateway.sse import MAX_EVENT_BYTES, EventTooLarge, HeldEvent, SseRewriter
from toolbox_dtma.gateway.state import Admitted, PolicyState, Target

CONNECT_SECONDS = 5.0
CALL_IDLE_SECONDS = 900.0
"""Longest silence of a server within the answer to a POST."""
STREAM_IDLE_SECONDS = 3600.0
"""Longest silence on a stream that a client listens to."""
WRITE_STALL_SECONDS = 120.0
"""Longest time a client may take to accept bytes."""
DETACHED_SECONDS = 600.0
"""How long a call runs on after its client hung up."""
MAX_DETACHED = 256
OFFLOAD_BYTES = 64 * 1024
"""Documents above this are parsed in a thread."""

WHOLE_BYTES = 64 * 1024
"""Answers up to this size are handed to the server part at once: the kernel takes as much from anybody."""


@dataclass(frozen=True, slots=True)
class Call:
    """What goes to the server, and what must be known of it when the answer comes."""

    method: str
    target: Target
    headers: Mapping[str, str]
    body: bytes | None
    id: RpcId
    binding: Binding
    session: str | None
    """The server's id of the session that the request belongs to."""
    filter_lists: bool
    """Whether a JSON answer may hold lists that belong to it."""
    survives: bool
    """Whether it runs on when the client hangs up."""
    idle_seconds: float


def new_client_session() -> aiohttp.ClientSession:
    """The client towards servers: no cookies, no redirects, no decoding, nothing from the environment."""
    return aiohttp.ClientSession(
        # Servers close idle connections after 5 s or more; ours must be gone first, or a POST meets a closing one.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0, use_dns_cache=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
    )


class Relay:
    """Relays calls for one worker."""

    def __init__(
        self,
        client: aiohttp.ClientSession,
        state: PolicyState,
        exchanges: Exchanges,
        *,
        unix_clock: Callable[[], float],
    ):
        self._client = client
        self._state = state
        self._exchanges = exchanges
        self._unix = unix_clock
        self._detached: set[asyncio.Task[None]] = set()

    async def run(self, request: web.BaseRequest, exchange: Exchange, call: Call) -> web.StreamResponse:
        """Send the call and answer the client. Raises `Refusal` while nothing was answered yet."""
        sending = asyncio.ensure_future(self._send(call))
        sending.add_done_callback(_retrieve)
        detached = False
        try:
            upstream = await asyncio.shield(sending)
            return await self._answer(request, exchange, call, upstream)
        except asyncio.CancelledError:
            detached = self._detach(exchange, call, sending)
            raise
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise unavailable("connect", "The server does not accept connections now", call.id) from None
        except (aiohttp.ClientError, TimeoutError):
            raise bad_gateway("upstream-broken", "The server broke off its answer", call.id) from None
        finally:
            if not detached:
                _discard(sending)

    async def _send(self, call: Call) -> aiohttp.ClientResponse:
        if call.target.url is None:
            raise unavailable("instance-away", "The server is not running now", call.id)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=call.idle_seconds)
        return await self._client.request(
            call.method,
            call.target.url,
            headers=call.headers,
            data=call.body,
            allow_redirects=False,
            timeout=timeout,
        )

    async def _answer(
        self, request: web.BaseRequest, exchange: Exchange, call: Call, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        status = upstream.status
        # A switch of protocols would make the connection a tunnel for whatever stands before the gateway.
        if status < 200 or status == 401 or 300 <= status < 400:
            raise bad_gateway(f"upstream-{status}", f"The server answered {status}, which is not passed on", call.id)
        if (reason := unreadable(upstream.headers)) is not None:
            raise bad_gateway(reason, "The server sent an encoded answer, or one of no certain type", call.id)
        headers = downstream_headers(upstream.headers, session=self._signed_session(call, upstream))
        kind = media_type(upstream.headers)
        if kind == EVENT_STREAM:
            # Such a stream is UTF-8; a client that believed another charset would read other events than policy does.
            headers["Content-Type"] = EVENT_STREAM
            return await self._events(request, exchange, call, upstream, headers)
        if call.filter_lists and self._is_restricted(exchange):
            return await self._filtered(request, exchange, call, upstream, kind, headers)
        return await self._bytes(request, exchange, upstream, headers)

    def _signed_session(self, call: Call, upstream: aiohttp.ClientResponse) -> str | None:
        values = upstream.headers.getall(SESSION, [])
        if not values:
            return None
        sessions = self._state.sessions
        try:
            if len(values) > 1 or sessions is None:
                raise UpstreamIdUnusable("more than one session id, or no key to sign it")
            return sessions.sign(values[0], call.binding, int(self._unix()))
        except UpstreamIdUnusable:
            raise bad_gateway("upstream-session", "The server sent an unusable session id", call.id) from None

    def _is_restricted(self, exchange: Exchange) -> bool:
        view = self._state.view(exchange.admitted.grant.uid)
        return view is None or view.restricted

    async def _bytes(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        upstream: aiohttp.ClientResponse,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Pass the body on unseen."""
        first = await upstream.content.readany()
        if upstream.content.at_eof():
            return web.Response(status=upstream.status, headers=headers, body=first or None)
        response = web.StreamResponse(status=upstream.status, headers=headers)
        response.content_length = upstream.content_length
        exchange.started = True
        await response.prepare(request)
        try:
            await _write(response, first)
            async for chunk in upstream.content.iter_any():
                await _write(response, chunk)
        except (aiohttp.ClientError, TimeoutError):
            _cut(request)
        return response

    async def _filtered(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        call: Call,
        upstream: aiohttp.ClientResponse,
        kind: str,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Read a whole answer and pass on what policy shows of it."""
        raw = bytearray()
        async for chunk in upstream.content.iter_any():
            raw += chunk
            if len(raw) > MAX_EVENT_BYTES:
                raise bad_gateway("undecidable", "The server's answer is too large to be filtered", call.id)
        if not raw:
            return web.Response(status=upstream.status, headers=headers)
        try:
            if kind != "application/json":
                raise Undecidable("not JSON by its type")
            body = await self._shown(exchange, bytes(raw))
        except Undecidable:
            if upstream.status < 400:
                raise bad_gateway("undecidable", "The server's answer cannot be filtered", call.id) from None
            # An error keeps its meaning by its status; what it says cannot be trusted to hold no list.
            return web.json_response(
                rpc_error(SERVER_ERROR, f"The server answered {upstream.status}", call.id),
                status=upstream.status,
                headers={name: value for name, value in headers.items() if name != "Content-Type"},
            )
        headers = {**headers, "Content-Type": "application/json"}
        if len(body) <= WHOLE_BYTES:
            return web.Response(status=upstream.status, headers=headers, body=body)
        # Written while the exchange is known, so that a slow client is bounded and a revocation cuts it.
        response = web.StreamResponse(status=upstream.status, headers=headers)
        response.content_length = len(body)
        exchange.started = True
        await response.prepare(request)
        try:
            for start in range(0, len(body), WHOLE_BYTES):
                await _write(response, body[start : start + WHOLE_BYTES])
        except (aiohttp.ClientError, TimeoutError):
            _cut(request)
        return response

    async def _shown(self, exchange: Exchange, raw: bytes) -> bytes:
        """A document as policy shows it at the moment of return. Raises `Undecidable`."""
        while True:
            revision = self._state.revision
            view = self._state.view(exchange.admitted.grant.uid)
            if view is None:
                raise Undecidable("the connection is gone")
            hidden = listings(view)
            if len(raw) <= OFFLOAD_BYTES:
                return filter_lists(raw, hidden)
            shown = await asyncio.to_thread(filter_lists, raw, hidden)
            # The policy may have become narrower while the thread worked.
            if revision == self._state.revision:
                return shown

    async def _events(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        call: Call,
        upstream: aiohttp.ClientResponse,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Pass events on with ids of this session, held and filtered while policy is restricted."""
        session = upstream.headers.get(SESSION, call.session or "")
        rewriter = SseRewriter(EventIds(lambda: self._state.sessions, call.binding, session).wrap)
        response = web.StreamResponse(status=upstream.status, headers=headers)
        exchange.started = True
        await response.prepare(request)
        try:
            async for chunk in upstream.content.iter_any():
                out = await self._rewritten(exchange, rewriter, chunk)
                if out:
                    await _write(response, out)
        except (EventTooLarge, Undecidable):
            exchange.cut = "undecidable"
            _cut(request)
        except (aiohttp.ClientError, TimeoutError):
            _cut(request)
        if rewriter.unterminated and exchange.cut is None:
            exchange.cut = "unterminated"
            _cut(request)
        return response

    async def _rewritten(self, exchange: Exchange, rewriter: SseRewriter, chunk: bytes) -> bytes:
        parts: list[bytes] = []
        for piece in rewriter.feed(chunk, hold=self._is_restricted(exchange)):
            if not isinstance(piece, HeldEvent):
                parts.append(piece)
            elif not piece.data:
                parts.append(piece.render())
            else:
                shown = await self._shown(exchange, piece.data)
                # Line breaks in JSON are only ever white space, and would end the data line.
                parts.append(piece.render(None if shown is piece.data else shown.replace(b"\n", b" ")))
        return b"".join(parts)

    def _detach(self, exchange: Exchange, call: Call, sending: asyncio.Future[aiohttp.ClientResponse]) -> bool:
        """Let the call run on after its client hung up, if it may. Returns whether it does."""
        if not call.survives or exchange.aborted is not None or len(self._detached) >= MAX_DETACHED:
            return False
        task = asyncio.create_task(self._finish(exchange.admitted, sending))
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)
        return True

    async def _finish(self, admitted: Admitted, sending: asyncio.Future[aiohttp.ClientResponse]) -> None:
        """Read the rest of an answer that nobody waits for any more, since a hang-up is not a cancellation."""
        grant = admitted.grant
        with self._exchanges.enter(admitted, None) as exchange:
            # A revocation may have come between the hang-up and the first step of this task.
            if self._state.still_admitted(grant.uid, admitted.digest, grant.instance) is None:
                exchange.abort(Cause.REVOKED)
            try:
                async with asyncio.timeout(DETACHED_SECONDS):
                    upstream = await sending
                    async for _ in upstream.content.iter_any():
                        pass
            except (Refusal, aiohttp.ClientError, TimeoutError, asyncio.CancelledError):
                # Ended by the server, by time or by revocation: there is nobody left to tell.
                return
            finally:
                _discard(sending)

    async def close(self) -> None:
        """End what still runs on."""
        for task in tuple(self._detached):
            task.cancel()
        await asyncio.gather(*self._detached, return_exceptions=True)


def _retrieve(sending: asyncio.Future[aiohttp.ClientResponse]) -> None:
    """Take note of an error that nobody awaits, which the event loop would otherwise report."""
    if not sending.cancelled():
        sending.exception()


def _discard(sending: asyncio.Future[aiohttp.ClientResponse]) -> None:
    """Close the server's side, whatever state it is in; a complete answer's connection is reused."""
    if not sending.done():
        sending.cancel()
    elif not sending.cancelled() and sending.exception() is None:
        sending.result().close()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_STALL_SECONDS):
        await response.write(data)


def _cut(request: web.BaseRequest) -> None:
    """Close the client's connection so that it cannot take what it got for the whole."""
    transport = request.transport
    if transport is not None:
        transport.abort()

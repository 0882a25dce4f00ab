"""One request to a server and its answer back, as bytes wherever policy has nothing to say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import web

from toolbox_dtma.gateway.call import Call
from toolbox_dtma.gateway.detached import Detached
from toolbox_dtma.gateway.downstream import WHOLE_BYTES, Whole, cut, desert, write
from toolbox_dtma.gateway.event_ids import EventIds
from toolbox_dtma.gateway.exchanges import Exchange, Exchanges
from toolbox_dtma.gateway.filtering import Undecidable, filter_lists, listings, may_hold_list
from toolbox_dtma.gateway.headers import EVENT_STREAM, SESSION, downstream_headers, media_type, unreadable
from toolbox_dtma.gateway.limits import AnswerTooLarge, bounded
from toolbox_dtma.gateway.parsing import SERVER_ERROR
from toolbox_dtma.gateway.refusal import BROKE_OFF, bad_gateway, rpc_error, unavailable
from toolbox_dtma.gateway.sessions import UpstreamIdUnusable
from toolbox_dtma.gateway.skimming import is_quick, run
from toolbox_dtma.gateway.sse import MAX_EVENT_BYTES, EventTooLarge, HeldEvent, SseRewriter, only_event, portions
from toolbox_dtma.gateway.state import PolicyState
from toolbox_dtma.gateway.stepping import Stepper
from toolbox_dtma.gateway.unanswered import StreamUnanswered
from toolbox_dtma.gateway.upstream.client import UpstreamClient
from toolbox_dtma.gateway.upstream.connection import Answer
from toolbox_dtma.gateway.upstream.errors import ConnectFailed, UpstreamError

CALL_IDLE_SECONDS = 900.0
"""Longest silence of a server within the answer to a POST."""
STREAM_IDLE_SECONDS = 3600.0
"""Longest silence on a stream that a client listens to."""
HASHED_OFFLOAD_BYTES = 8 * 1024
"""Documents above this are cut in a thread where their tools are hashed: one of them can take many steps' time."""


class Relay:
    """Relays calls for one worker."""

    def __init__(
        self,
        client: UpstreamClient,
        state: PolicyState,
        exchanges: Exchanges,
        stepper: Stepper,
        *,
        unix_clock: Callable[[], float],
    ):
        self._client = client
        self._state = state
        self._stepper = stepper
        self._unix = unix_clock
        self._detached = Detached(exchanges, state)

    async def run(self, request: web.BaseRequest, exchange: Exchange, call: Call) -> web.StreamResponse:
        """Send the call and answer the client. Raises `Refusal` while nothing was answered yet."""
        upstream = self._send(call)
        detached = False
        try:
            response = await self._answer(request, exchange, call, upstream)
            detached = exchange.deserted and self._detached.take(exchange, call, upstream)
            return response
        except asyncio.CancelledError:
            detached = self._detached.take(exchange, call, upstream)
            raise
        except ConnectFailed:
            raise unavailable("connect", "The server does not accept connections now", call.id) from None
        except UpstreamError as error:
            raise bad_gateway(error.reason, BROKE_OFF, call.id) from None
        except AnswerTooLarge:
            if exchange.bounds is None:
                raise
            raise exchange.bounds.too_large() from None
        finally:
            if not detached:
                upstream.close()

    def _send(self, call: Call) -> Answer:
        target = call.target
        if target.origin is None:
            raise unavailable("instance-away", "The server is not running now", call.id)
        return self._client.request(
            call.method, target.origin, target.route.path, call.headers, call.body, silence=call.idle_seconds
        )

    async def _answer(
        self, request: web.BaseRequest, exchange: Exchange, call: Call, upstream: Answer
    ) -> web.StreamResponse:
        await upstream.head()
        status = upstream.status
        # A switch of protocols would make the connection a tunnel for whatever stands before the gateway.
        if status < 200 or status == 401 or 300 <= status < 400:
            raise bad_gateway(f"upstream-{status}", f"The server answered {status}, which is not passed on", call.id)
        if (reason := unreadable(upstream.headers)) is not None:
            raise bad_gateway(reason, "The server sent an encoded answer, or one of no certain type", call.id)
        most = exchange.max_response_bytes
        if most is not None and (upstream.length or 0) > most:
            raise AnswerTooLarge
        headers = downstream_headers(upstream.headers, session=self._signed_session(call, upstream))
        kind = media_type(upstream.headers)
        exchange.calls.answering(status, kind)
        if kind == EVENT_STREAM:
            return await self._events(request, exchange, call, upstream, headers)
        if call.filter_lists and self._is_restricted(exchange):
            return await self._filtered(request, exchange, call, upstream, kind, headers)
        return await self._bytes(request, exchange, upstream, headers)

    def _signed_session(self, call: Call, upstream: Answer) -> str | None:
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
        upstream: Answer,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Pass the body on unseen."""
        calls = exchange.calls
        read = bounded(upstream.read, exchange.max_response_bytes)
        first = await read()
        calls.body(first)
        if upstream.at_eof:
            calls.complete()
            calls.sent(len(first))
            return Whole(upstream.status, headers, first)
        response = web.StreamResponse(status=upstream.status, headers=headers)
        response.content_length = upstream.length
        exchange.started = True
        try:
            await response.prepare(request)
            await write(response, first)
            calls.sent(len(first))
            while chunk := await read():
                calls.body(chunk)
                await write(response, chunk)
                calls.sent(len(chunk))
            calls.complete()
        except UpstreamError as error:
            calls.broke(error)
            cut(request)
        except (ConnectionError, TimeoutError):
            desert(request, exchange)
        except AnswerTooLarge:
            cut(request, exchange)
        return response

    async def _filtered(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        call: Call,
        upstream: Answer,
        kind: str,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Read a whole answer and pass on what policy shows of it."""
        calls = exchange.calls
        held = bytearray()
        read = bounded(upstream.read, exchange.max_response_bytes)
        while chunk := await read():
            held += chunk
            if len(held) > MAX_EVENT_BYTES:
                raise bad_gateway("undecidable", "The server's answer is too large to be filtered", call.id)
        raw = bytes(held)
        calls.body(raw)
        calls.complete()
        if not raw:
            return Whole(upstream.status, headers, b"")
        try:
            if kind != "application/json":
                raise Undecidable("not JSON by its type")
            body = await self._shown(exchange, raw)
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
            calls.sent(len(body))
            return Whole(upstream.status, headers, body)
        # Written while the exchange is known, so that a slow client is bounded and a revocation cuts it.
        response = web.StreamResponse(status=upstream.status, headers=headers)
        response.content_length = len(body)
        exchange.started = True
        await response.prepare(request)
        try:
            for start in range(0, len(body), WHOLE_BYTES):
                piece = body[start : start + WHOLE_BYTES]
                await write(response, piece)
                calls.sent(len(piece))
        except (UpstreamError, ConnectionError, TimeoutError) as error:
            calls.broke(error)
            cut(request)
        return response

    async def _shown(self, exchange: Exchange, raw: bytes) -> bytes:
        """A document as policy shows it at the moment of return. Raises `Undecidable`."""
        while True:
            revision = self._state.revision
            view = self._state.view(exchange.admitted.grant.uid)
            if view is None:
                raise Undecidable("the connection is gone")
            hidden = listings(view)
            if not may_hold_list(raw, hidden):
                return raw
            work = filter_lists(raw, hidden)
            if view.approved is not None and len(raw) > HASHED_OFFLOAD_BYTES:
                shown = await asyncio.to_thread(run, work)
            elif is_quick(raw):
                return run(work)
            else:
                shown = await self._stepper.run(work)
            # The policy may have become narrower meanwhile.
            if revision == self._state.revision:
                return shown

    async def _events(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        call: Call,
        upstream: Answer,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Pass events on with ids of this session, held and filtered while policy is restricted."""
        session = upstream.headers.get(SESSION, call.session or "")
        read = bounded(upstream.read, exchange.max_response_bytes)
        rewriter = SseRewriter(EventIds(lambda: self._state.sessions, call.binding, session).wrap)
        response = web.StreamResponse(status=upstream.status, headers=headers)
        # A stream of the broker that breaks off is over for good, its session too: nobody could go on with it.
        owed = StreamUnanswered(call.ids) if call.target.route.bridge is not None and call.ids else None
        try:
            out = b""
            if upstream.complete and upstream.buffered <= WHOLE_BYTES:
                # The stream has already ended: it leaves in one piece, unless its last event is to stay behind.
                out = await read()
                event = None if self._is_restricted(exchange) else only_event(out)
                if event is not None:
                    exchange.calls.event(event)
                else:
                    out = await self._rewritten(exchange, rewriter, out, owed)
                if not rewriter.unterminated:
                    exchange.calls.complete()
                    exchange.calls.sent(len(out))
                    return Whole(upstream.status, headers, out)
            exchange.started = True
            await response.prepare(request)
            while True:
                if out:
                    await write(response, out)
                    exchange.calls.sent(len(out))
                if not (chunk := await read()):
                    break
                out = await self._rewritten(exchange, rewriter, chunk, owed)
            if rewriter.unterminated:
                exchange.cut = "unterminated"
            exchange.calls.complete()
        except UpstreamError as error:
            exchange.calls.broke(error)
            if owed is None or rewriter.within_event or not await _told(response, exchange, owed):
                cut(request)
            return response
        except (EventTooLarge, Undecidable) as error:
            exchange.calls.broke(error)
            exchange.cut = "undecidable"
            cut(request)
        except (ConnectionError, TimeoutError):
            desert(request, exchange)
        except AnswerTooLarge:
            cut(request, exchange)
        if rewriter.unterminated:
            cut(request)
        return response

    async def _rewritten(
        self, exchange: Exchange, rewriter: SseRewriter, chunk: bytes, owed: StreamUnanswered | None
    ) -> bytes:
        parts: list[bytes] = []
        for portion in portions(chunk):
            if portion is not chunk:
                # Other requests are not to wait until so many lines are read.
                await asyncio.sleep(0)
            for piece in rewriter.feed(portion, hold=self._is_restricted(exchange)):
                if not isinstance(piece, HeldEvent):
                    parts.append(piece)
                elif not piece.data:
                    parts.append(piece.render())
                else:
                    shown = await self._shown(exchange, piece.data)
                    # Line breaks in JSON are only ever white space, and would end the data line.
                    parts.append(piece.render(None if shown is piece.data else shown.replace(b"\n", b" ")))
                exchange.calls.event(piece)
                if owed is not None:
                    owed.event(piece)
        if exchange.bounds is not None and exchange.calls.answered:
            # Before its client can read the answer, and make the next call while this stream still ends.
            exchange.bounds.release()
        return b"".join(parts)

    async def close(self) -> None:
        """End what still runs on."""
        await self._detached.close()


async def _told(response: web.StreamResponse, exchange: Exchange, owed: StreamUnanswered) -> bool:
    """Answer what the server owes, in its place, on a stream that then ends; False if the client takes it no more."""
    errors = owed.errors(BROKE_OFF)
    try:
        await write(response, errors)
    except (ConnectionError, TimeoutError):
        return False
    exchange.calls.sent(len(errors))
    return True

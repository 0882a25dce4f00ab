"""One request to a server and its answer back, as bytes wherever policy has nothing to say."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from toolbox_dtma.gateway.accounting import cancelled_outcome
from toolbox_dtma.gateway.call import Call
from toolbox_dtma.gateway.downstream import WHOLE_BYTES, Whole, cut, desert, write
from toolbox_dtma.gateway.event_ids import EventIds
from toolbox_dtma.gateway.exchanges import Cause, Exchange, Exchanges
from toolbox_dtma.gateway.filtering import Undecidable, filter_lists, listings, may_hold_list
from toolbox_dtma.gateway.headers import EVENT_STREAM, SESSION, downstream_headers, media_type, unreadable
from toolbox_dtma.gateway.limits import AnswerTooLarge, Bounds, bounded
from toolbox_dtma.gateway.observer import UNMEASURED, Observer
from toolbox_dtma.gateway.refusal import SERVER_ERROR, bad_gateway, rpc_error, unavailable
from toolbox_dtma.gateway.sessions import UpstreamIdUnusable
from toolbox_dtma.gateway.skimming import is_quick, run
from toolbox_dtma.gateway.sse import MAX_EVENT_BYTES, EventTooLarge, HeldEvent, SseRewriter, only_event, portions
from toolbox_dtma.gateway.state import Admitted, PolicyState
from toolbox_dtma.gateway.stepping import Stepper
from toolbox_dtma.gateway.upstream.client import UpstreamClient
from toolbox_dtma.gateway.upstream.connection import Answer
from toolbox_dtma.gateway.upstream.errors import ConnectFailed, UpstreamError
from toolbox_dtma.link.messages import GrantPolicy
from toolbox_dtma.wire import CallOutcome

CALL_IDLE_SECONDS = 900.0
"""Longest silence of a server within the answer to a POST."""
STREAM_IDLE_SECONDS = 3600.0
"""Longest silence on a stream that a client listens to."""
DETACHED_SECONDS = 600.0
"""How long a call runs on after its client hung up."""
MAX_DETACHED = 64
"""Calls of one connection that may run on in one worker, unless its own limits bound what runs."""
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
        self._exchanges = exchanges
        self._stepper = stepper
        self._unix = unix_clock
        self._detached: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)

    async def run(self, request: web.BaseRequest, exchange: Exchange, call: Call) -> web.StreamResponse:
        """Send the call and answer the client. Raises `Refusal` while nothing was answered yet."""
        upstream = self._send(call)
        detached = False
        try:
            response = await self._answer(request, exchange, call, upstream)
            detached = exchange.deserted and self._detach(exchange, call, upstream)
            return response
        except asyncio.CancelledError:
            detached = self._detach(exchange, call, upstream)
            raise
        except ConnectFailed:
            raise unavailable("connect", "The server does not accept connections now", call.id) from None
        except UpstreamError as error:
            raise bad_gateway(error.reason, "The server broke off its answer", call.id) from None
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
        most = _most(exchange)
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
        read = _reader(upstream, exchange)
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
        read = _reader(upstream, exchange)
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
        read = _reader(upstream, exchange)
        rewriter = SseRewriter(EventIds(lambda: self._state.sessions, call.binding, session).wrap)
        response = web.StreamResponse(status=upstream.status, headers=headers)
        try:
            out = b""
            if upstream.complete and upstream.buffered <= WHOLE_BYTES:
                # The stream has already ended: it leaves in one piece, unless its last event is to stay behind.
                out = await read()
                event = None if self._is_restricted(exchange) else only_event(out)
                if event is not None:
                    exchange.calls.event(event)
                else:
                    out = await self._rewritten(exchange, rewriter, out)
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
                out = await self._rewritten(exchange, rewriter, chunk)
            if rewriter.unterminated:
                exchange.cut = "unterminated"
            exchange.calls.complete()
        except (UpstreamError, EventTooLarge, Undecidable) as error:
            exchange.calls.broke(error)
            exchange.cut = None if isinstance(error, UpstreamError) else "undecidable"
            cut(request)
        except (ConnectionError, TimeoutError):
            desert(request, exchange)
        except AnswerTooLarge:
            cut(request, exchange)
        if rewriter.unterminated:
            cut(request)
        return response

    async def _rewritten(self, exchange: Exchange, rewriter: SseRewriter, chunk: bytes) -> bytes:
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
        if exchange.bounds is not None and exchange.calls.answered:
            # Before its client can read the answer, and make the next call while this stream still ends.
            exchange.bounds.release()
        return b"".join(parts)

    def _detach(self, exchange: Exchange, call: Call, upstream: Answer) -> bool:
        """Let the call run on after its client hung up, if it may. Returns whether it does."""
        grant = exchange.admitted.grant
        if not call.survives or exchange.aborted is not None or not self._may_detach(grant):
            return False
        bounds = exchange.unbind()
        calls, exchange.calls = exchange.calls, UNMEASURED
        task = asyncio.create_task(self._finish(exchange.admitted, bounds, upstream, calls))
        self._detached[grant.uid].add(task)
        task.add_done_callback(lambda done: self._finished(grant.uid, done))
        # Also of a task that is cancelled before its first step.
        task.add_done_callback(lambda _: calls.settle(CallOutcome.CANCELLED))
        if bounds is not None:
            task.add_done_callback(lambda _: bounds.release())
        return True

    def _may_detach(self, grant: GrantPolicy) -> bool:
        # Where a limit bounds what runs, closing one call to make room would free its place by a hang-up.
        bounded_by_limit = grant.limits is not None and grant.limits.concurrent_calls is not None
        return bounded_by_limit or len(self._detached.get(grant.uid, ())) < MAX_DETACHED

    def _finished(self, uid: str, task: asyncio.Task[None]) -> None:
        self._detached[uid].discard(task)
        if not self._detached[uid]:
            del self._detached[uid]

    async def _finish(self, admitted: Admitted, bounds: Bounds | None, upstream: Answer, calls: Observer) -> None:
        """Read the rest of an answer that nobody waits for any more, since a hang-up is not a cancellation."""
        grant = admitted.grant
        with self._exchanges.enter(admitted, None) as exchange:
            if bounds is not None:
                exchange.bind(bounds)
            # A revocation may have come between the hang-up and the first step of this task.
            if self._state.still_admitted(grant.uid, admitted.digest, grant.instance) is None:
                exchange.abort(Cause.REVOKED)
            try:
                async with asyncio.timeout(DETACHED_SECONDS):
                    await upstream.head()
                    read = _reader(upstream, exchange)
                    while await read():
                        pass
                calls.settle(CallOutcome.DETACHED)
            except (UpstreamError, TimeoutError):
                # Ended by the server or by time: there is nobody left to tell.
                calls.settle(CallOutcome.DETACHED)
            except AnswerTooLarge:
                calls.settle(CallOutcome.LIMITED)
            except asyncio.CancelledError:
                # Revoked, out of time, or the worker stops.
                calls.settle(cancelled_outcome(exchange))
            finally:
                upstream.close()

    async def close(self) -> None:
        """End what still runs on."""
        running = [task for tasks in self._detached.values() for task in tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _most(exchange: Exchange) -> int | None:
    """Bytes that an answer's body may have."""
    return None if exchange.bounds is None else exchange.bounds.max_response_bytes


def _reader(upstream: Answer, exchange: Exchange) -> Callable[[], Awaitable[bytes]]:
    """What reads the body, within what it may have."""
    most = _most(exchange)
    return upstream.read if most is None else bounded(upstream.read, most)

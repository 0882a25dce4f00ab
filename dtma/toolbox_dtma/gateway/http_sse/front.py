"""HTTP+SSE as clients of revision 2024-11-05 speak it: `GET /servers/{id}/sse`, and POST to where that tells them."""

from __future__ import annotations

import asyncio
import traceback
from collections import defaultdict
from collections.abc import Callable

from aiohttp import web
from multidict import CIMultiDict
from structlog.typing import FilteringBoundLogger

from toolbox_dtma.gateway import bodies
from toolbox_dtma.gateway.admission import METHODS, SSE
from toolbox_dtma.gateway.clients import Clients
from toolbox_dtma.gateway.downstream import cut, desert, write
from toolbox_dtma.gateway.exchanges import Cause, Exchange
from toolbox_dtma.gateway.headers import EVENT_STREAM
from toolbox_dtma.gateway.http_sse.answers import COMMENT, endpoint_event
from toolbox_dtma.gateway.http_sse.incoming import Incoming, carried
from toolbox_dtma.gateway.http_sse.inside import Inside
from toolbox_dtma.gateway.http_sse.outbox import Budget, Overfull
from toolbox_dtma.gateway.http_sse.peers import SOURCE, PeerClient, PeerRequest
from toolbox_dtma.gateway.http_sse.reference import Place, binding_of, locate, named, new_name, path_of, reference
from toolbox_dtma.gateway.http_sse.session import Session, gone
from toolbox_dtma.gateway.parsing import INVALID_REQUEST, SERVER_ERROR, BodyRefused
from toolbox_dtma.gateway.refusal import RETRY_SECONDS, Refusal, unavailable
from toolbox_dtma.gateway.state import PolicyState
from toolbox_dtma.gateway.stepping import Stepper
from toolbox_dtma.gateway.upstream.errors import Broken, ConnectFailed, UpstreamError

COMMENT_SECONDS = 15.0
"""Between signs of life on a stream: proxies close those that are silent, some after 30 s."""
MAX_STREAMS_OF_CONNECTION = 64
"""In one worker."""
MAX_STREAMS = 4096
"""In one worker, of all connections."""
PEER_SECONDS = 15.0
"""How long another worker may take to accept a message."""
MAX_PEER_ANSWER_BYTES = 64 * 1024
OVERFULL = "sse-overfull"
_DOWN = ("Content-Type", "Retry-After", "WWW-Authenticate", "Cache-Control")


class Front:
    """The streams of one worker."""

    def __init__(
        self,
        inside: Inside,
        state: PolicyState,
        clients: Clients,
        stepper: Stepper,
        log: FilteringBoundLogger,
        *,
        unix_clock: Callable[[], float],
        comment_seconds: float = COMMENT_SECONDS,
    ):
        self._inside = inside
        self._state = state
        self._clients = clients
        self._stepper = stepper
        self._log = log
        self._unix = unix_clock
        self._comment_seconds = comment_seconds
        self._budget = Budget()
        self._streams: dict[str, Session] = {}
        self._by_connection: defaultdict[str, set[str]] = defaultdict(set)
        self._ending: set[asyncio.Task[None]] = set()

    async def answer(self, request: web.BaseRequest, exchange: Exchange, door: str) -> web.StreamResponse:
        """Answer an admitted request at one of the two doors. Raises `Refusal`."""
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": ", ".join(METHODS[door]), "Cache-Control": "no-store"})
        return await (self._stream if door == SSE else self._post)(request, exchange)

    async def _stream(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        grant, ids = exchange.admitted.grant, self._state.sessions
        target = self._state.target(grant.instance)
        if target is None or target.origin is None or ids is None:
            raise unavailable("instance-away", "The server is not running now")
        self._check_room(grant.uid)
        place = Place(self._inside.name, new_name())
        told = reference(ids, place, binding_of(grant.uid, grant.instance), int(self._unix()))

        def broken(error: BaseException) -> None:
            if isinstance(error, Overfull):
                exchange.cut = OVERFULL
            else:
                # Its text is left out, since it may quote a message.
                frames = traceback.format_tb(error.__traceback__)[-6:]
                self._log.error("failed", error=type(error).__name__, frames=frames, connection=grant.uid)
            cut(request)

        session = Session(
            self._inside.own,
            self._clients,
            self._budget,
            connection=grant.uid,
            instance=grant.instance,
            source=request.remote or "",
            headers=carried(request.headers),
            broken=broken,
        )
        self._streams[place.stream] = session
        self._by_connection[grant.uid].add(place.stream)
        exchange.listening, exchange.busy = True, session.is_busy
        response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-store"})
        try:
            exchange.started = True
            await response.prepare(request)
            await write(response, endpoint_event(told))
            while (event := await session.outbox.take(self._comment_seconds)) is not None:
                await write(response, event or COMMENT)
        except (ConnectionError, TimeoutError):
            desert(request, exchange)
        finally:
            self._close(place.stream, session, exchange)
        return response

    def _check_room(self, connection: str) -> None:
        """Raises `Refusal` 429, 503."""
        if len(self._by_connection.get(connection, ())) >= MAX_STREAMS_OF_CONNECTION:
            text = f"This connection has {MAX_STREAMS_OF_CONNECTION} streams open; close some"
            headers = {"Retry-After": str(RETRY_SECONDS)}
            raise Refusal.rpc(429, "sse-streams", SERVER_ERROR, text, headers=headers)
        if len(self._streams) >= MAX_STREAMS:
            raise unavailable("sse-streams", "The gateway has as many streams open as it can; try again")

    def _close(self, stream: str, session: Session, exchange: Exchange) -> None:
        del self._streams[stream]
        streams = self._by_connection[session.connection]
        streams.discard(stream)
        if not streams:
            del self._by_connection[session.connection]
        session.close()
        # A credential that is no longer good is not tried again, and without a policy none is.
        told = exchange.aborted in {None, Cause.STOPPING}
        task = asyncio.create_task(session.ended(delete=told))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _post(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        grant, ids = exchange.admitted.grant, self._state.sessions
        binding = binding_of(grant.uid, grant.instance)
        signed = named(request.raw_path)
        place = locate(ids, signed, binding) if ids is not None and signed is not None else None
        if place is None or signed is None:
            raise gone()
        elsewhere = place.worker != self._inside.name
        session = None if elsewhere else self._streams.get(place.stream)
        # Nothing is passed on twice: a stream of a third worker is none of either.
        if session is None and (not elsewhere or isinstance(request, PeerRequest)):
            raise gone()
        try:
            raw = await bodies.read_json(request)
            if session is None:
                return await self._pass_on(request, place, path_of(grant.instance, signed), raw)
            message = Incoming(raw, await bodies.parsed(raw, self._stepper), carried(request.headers))
        except BodyRefused as refused:
            raise bodies.refused(refused) from None
        if message.is_modern and not message.ids:
            raise Refusal.rpc(400, "headers", INVALID_REQUEST, "This transport has no revision without handshake")
        session.accept(message)
        return web.Response(status=202, headers={"Cache-Control": "no-store"})

    async def _pass_on(self, request: web.BaseRequest, place: Place, path: str, raw: bytes) -> web.StreamResponse:
        """Have another worker answer. Raises `Refusal`."""
        headers = CIMultiDict(carried(request.headers))
        headers["Content-Type"] = "application/json"
        headers[SOURCE] = request.remote or ""
        answer = self._inside.peers.request("POST", PeerClient.origin(place), path, headers, raw, silence=PEER_SECONDS)
        try:
            async with asyncio.timeout(PEER_SECONDS):
                await answer.head()
                body = b""
                while (chunk := await answer.read()) and len(body) < MAX_PEER_ANSWER_BYTES:
                    body += chunk
        except (ConnectFailed, Broken):
            # The worker has ended, and the stream with it.
            raise gone() from None
        except (UpstreamError, TimeoutError):
            raise unavailable("sse-peer", "The gateway cannot go on with this; try again") from None
        finally:
            answer.close()
        told = {name: answer.headers[name] for name in _DOWN if name in answer.headers}
        return web.Response(status=answer.status, headers=told, body=body or None)

    async def close(self, seconds: float) -> None:
        """Give servers so long to hear that their sessions have ended; all streams have."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=seconds)
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

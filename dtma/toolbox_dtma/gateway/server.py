"""The HTTP side of a worker: from a request's head and body to a decided call."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping

from aiohttp import web
from multidict import CIMultiDict
from structlog.typing import FilteringBoundLogger

from toolbox_dtma.gateway import bodies, limits, parsing
from toolbox_dtma.gateway.accounting import Meter, Settling
from toolbox_dtma.gateway.admission import MCP, Ask, admit, door_of
from toolbox_dtma.gateway.call import Call
from toolbox_dtma.gateway.event_ids import EventIds
from toolbox_dtma.gateway.exchanges import Cause, Exchange, Exchanges
from toolbox_dtma.gateway.headers import LAST_EVENT_ID, SESSION, HeaderRefused, upstream_headers
from toolbox_dtma.gateway.http_sse.front import Front
from toolbox_dtma.gateway.methods import KNOWN_REQUESTS
from toolbox_dtma.gateway.parsing import Body, BodyRefused, RpcId
from toolbox_dtma.gateway.policy import (
    HEADER_MISMATCH,
    HeaderMismatch,
    RoutingHeaders,
    check_routing,
    decide,
    needs_filter,
)
from toolbox_dtma.gateway.refusal import (
    SERVER_ERROR,
    SESSION_NOT_FOUND,
    Asker,
    Refusal,
    denied,
    unauthorized,
    unavailable,
)
from toolbox_dtma.gateway.relay import CALL_IDLE_SECONDS, STREAM_IDLE_SECONDS, Relay
from toolbox_dtma.gateway.sessions import Binding
from toolbox_dtma.gateway.state import PolicyState, Target
from toolbox_dtma.gateway.stepping import Stepper
from toolbox_dtma.gateway.throttle import FailureThrottle
from toolbox_dtma.wire import GrantLimits


class Gateway:
    """Answers every request that reaches a worker."""

    def __init__(
        self,
        state: PolicyState,
        exchanges: Exchanges,
        relay: Relay,
        throttle: FailureThrottle,
        stepper: Stepper,
        counts: limits.Counting,
        meter: Meter,
        sse: Front,
        log: FilteringBoundLogger,
    ):
        self._state = state
        self._exchanges = exchanges
        self._relay = relay
        self._throttle = throttle
        self._stepper = stepper
        self._counts = counts
        self._meter = meter
        self._sse = sse
        self._log = log

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; writes at most one line to the log, and only if it was not relayed."""
        note: dict[str, str] = {}
        try:
            return await self._handle(request, note)
        except Refusal as refusal:
            return self.refused(request, refusal, note)
        except ConnectionError:
            raise
        except Exception as error:
            # The worker's boundary: one broken request must not end the connection without an answer. The text
            # of the exception is left out, since it may quote the request.
            frames = traceback.format_tb(error.__traceback__)[-6:]
            self._meter.refused("internal")
            self._log.error("failed", error=type(error).__name__, frames=frames, **note)
            return Refusal.rpc(500, "internal", SERVER_ERROR, "Internal error of the gateway").response()

    def refused(
        self, request: web.BaseRequest, refusal: Refusal, note: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        """The answer to a request that is not relayed, audited with `note`. No word of the client's is in the line."""
        self._meter.refused(refusal.reason)
        known = {**refusal.holder, **(note or {})}
        self._log.info("refused", status=refusal.status, reason=refusal.reason, **_origin(request), **known)
        return refusal.response()

    async def _handle(self, request: web.BaseRequest, note: dict[str, str]) -> web.StreamResponse:
        begun = self._meter.now()
        ask = Ask(request.method, request.raw_path, request.headers, request.remote or "")
        admitted = admit(ask, self._state, self._throttle)
        note.update(connection=admitted.grant.uid, instance=admitted.grant.instance)
        transport = request.transport
        with self._exchanges.enter(admitted, transport) as exchange, Settling(exchange):
            try:
                if (door := door_of(request.raw_path)) != MCP:
                    return await self._sse.answer(request, exchange, door)
                if request.method == "POST":
                    call = await self._post_call(request, exchange, note, begun)
                else:
                    call = self._plain_call(request, exchange, begun)
                return await self._relay.run(request, exchange, call)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if exchange.aborted is Cause.TIMEOUT and exchange.started:
                    exchange.cut = limits.TIMEOUT
                if exchange.aborted is None or exchange.started or task is None:
                    raise
                task.uncancel()
                if exchange.aborted is Cause.TIMEOUT and exchange.bounds is not None:
                    raise exchange.bounds.too_slow() from None
                if exchange.aborted is Cause.REVOKED:
                    raise unauthorized() from None
                raise unavailable(exchange.aborted.value, "The gateway cannot go on with this; try again") from None
            finally:
                if exchange.cut is not None:
                    self._log.info("cut", reason=exchange.cut, **_origin(request), **note)

    async def _post_call(
        self, request: web.BaseRequest, exchange: Exchange, note: dict[str, str], begun: float
    ) -> Call:
        headers = request.headers
        try:
            raw = await bodies.read_json(request)
            body = await bodies.parsed(raw, self._stepper)
        except BodyRefused as refused:
            raise bodies.refused(refused) from None
        self._meter.begin(exchange, body, size=len(raw), begun=begun, headers=headers)
        first = body.messages[0]
        id_: RpcId = None if body.batch else first.id
        note["method"] = "batch" if body.batch else first.method if first.method in KNOWN_REQUESTS else "other"
        routing = RoutingHeaders(
            headers.getall("MCP-Protocol-Version", []), headers.getall("Mcp-Method", []), headers.getall("Mcp-Name", [])
        )
        try:
            modern = check_routing(body, routing)
        except HeaderMismatch as mismatch:
            raise Refusal.rpc(400, "headers", mismatch.code, str(mismatch), id=id_) from None
        asker = Asker.of(body, modern=modern)
        set_limits = exchange.admitted.grant.limits
        if set_limits is not None:
            limits.check_size(set_limits, len(raw), asker)
        target = self._target(exchange, id_)
        binding, session = self._session(request, exchange, target, id_)
        self._check_policy(body, exchange, modern=modern)
        exchange.listening = limits.is_listening(body)
        up = self._headers(request, exchange, target, session, id_)
        if set_limits is not None:
            self._let_in(exchange, set_limits, limits.Load.of(body), asker, begun)
        return Call(
            method="POST",
            target=target,
            headers=up,
            body=raw,
            id=id_,
            ids=asker.ids,
            binding=binding,
            session=session,
            filter_lists=needs_filter(body),
            survives=not modern and body.has_requests,
            idle_seconds=STREAM_IDLE_SECONDS if exchange.listening else CALL_IDLE_SECONDS,
        )

    def _plain_call(self, request: web.BaseRequest, exchange: Exchange, begun: float) -> Call:
        """GET, DELETE and OPTIONS: no body goes up."""
        if "Mcp-Method" in request.headers or "Mcp-Name" in request.headers:
            message = "Mcp-Method and Mcp-Name mirror a body, and this request has none"
            raise Refusal.rpc(400, "headers", HEADER_MISMATCH, message)
        target = self._target(exchange, None)
        binding, session = self._session(request, exchange, target, None)
        exchange.listening = request.method == "GET"
        last_event = self._last_event(request, binding, session) if exchange.listening else None
        up = self._headers(request, exchange, target, session, None, last_event)
        set_limits = exchange.admitted.grant.limits
        if set_limits is not None:
            self._let_in(exchange, set_limits, limits.Load(listening=exchange.listening), Asker(), begun)
        return Call(
            method=request.method,
            target=target,
            headers=up,
            body=None,
            id=None,
            ids=(),
            binding=binding,
            session=session,
            filter_lists=True,
            survives=False,
            idle_seconds=STREAM_IDLE_SECONDS if exchange.listening else CALL_IDLE_SECONDS,
        )

    def _let_in(
        self, exchange: Exchange, set_limits: GrantLimits, load: limits.Load, asker: Asker, begun: float
    ) -> None:
        """Count it, now that nothing but the server is left to refuse it. Raises `Refusal`."""
        grant = exchange.admitted.grant
        arrived = asyncio.get_running_loop().time() - (self._meter.now() - begun)
        exchange.bind(limits.let_in(self._counts, grant, set_limits, load, asker, arrived=arrived))

    def _target(self, exchange: Exchange, id: RpcId) -> Target:
        target = self._state.target(exchange.admitted.grant.instance)
        if target is None or target.origin is None:
            raise unavailable("instance-away", "The server is not running now", id)
        return target

    def _session(
        self, request: web.BaseRequest, exchange: Exchange, target: Target, id: RpcId
    ) -> tuple[Binding, str | None]:
        """The binding of this request, and the server's session id out of the signed one, if there is one."""
        grant = exchange.admitted.grant
        binding = Binding(grant.uid, grant.instance, target.route.incarnation)
        values = request.headers.getall(SESSION, [])
        if not values:
            return binding, None
        sessions = self._state.sessions
        upstream = sessions.verify(values[0], binding) if sessions is not None and len(values) == 1 else None
        if upstream is None:
            raise Refusal.rpc(404, "session", SESSION_NOT_FOUND, "Session not found; initialize again", id=id)
        return binding, upstream

    def _last_event(self, request: web.BaseRequest, binding: Binding, session: str | None) -> str | None:
        """The server's id of the event after which a stream is to go on, if the client names one."""
        values = request.headers.getall(LAST_EVENT_ID, [])
        if not any(values):
            return None
        ids = EventIds(lambda: self._state.sessions, binding, session or "")
        event = ids.unwrap(values[0]) if len(values) == 1 else None
        if event is None:
            message = "Last-Event-ID is not of this session; connect again without it"
            raise Refusal.rpc(400, "event-id", parsing.INVALID_REQUEST, message)
        return event

    def _check_policy(self, body: Body, exchange: Exchange, *, modern: bool) -> None:
        view = self._state.view(exchange.admitted.grant.uid)
        if view is None:
            raise unauthorized()
        denials = decide(body, view)
        if denials:
            raise denied(denials, batch=body.batch, modern=modern)

    def _headers(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        target: Target,
        session: str | None,
        id: RpcId,
        last_event: str | None = None,
    ) -> CIMultiDict[str]:
        try:
            return upstream_headers(
                request.headers,
                connection=exchange.admitted.grant.uid,
                port=target.route.port,
                session=session,
                last_event_id=last_event,
                route=target.route.incarnation if target.route.bridge is not None else None,
            )
        except HeaderRefused as refused:
            raise Refusal.rpc(400, "headers", parsing.INVALID_REQUEST, str(refused), id=id) from None


def _origin(request: web.BaseRequest) -> dict[str, str]:
    return {"http_method": request.method, "source": request.remote or ""}

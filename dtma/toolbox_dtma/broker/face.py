"""The broker's HTTP side: each instance an ordinary endpoint of streamable HTTP, for the gateway alone."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import traceback
from typing import Any, cast

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from toolbox_dtma.broker.answers import (
    EVENTS,
    JSON,
    RETRY_SECONDS,
    VERSION,
    event,
    input_full,
    later,
    names_no_handshake,
    no_session,
    read_body,
    tell,
)
from toolbox_dtma.broker.control import NoSession
from toolbox_dtma.broker.messages import INITIALIZE, Heard, Id, NotAMessage, read
from toolbox_dtma.broker.outlets import Outlet
from toolbox_dtma.broker.pipe import InputFull
from toolbox_dtma.broker.routing import IdInUse, TooMany
from toolbox_dtma.broker.session import Owner, Session, SessionOver
from toolbox_dtma.broker.sessions import NotBegun, Sessions
from toolbox_dtma.broker.stateless_face import StatelessFace
from toolbox_dtma.gateway.headers import CONNECTION, PROBE, ROUTE, SESSION
from toolbox_dtma.gateway.http import AuditedConnection
from toolbox_dtma.gateway.parsing import INVALID_REQUEST, PARSE_ERROR, SERVER_ERROR
from toolbox_dtma.gateway.refusal import SESSION_NOT_FOUND, Refusal, not_found, rpc_error
from toolbox_dtma.gateway.skimming import is_quick, run
from toolbox_dtma.link.broker import BACKLOG, Closing

BATCHING_VERSION = "2025-03-26"
"""The only revision with batches; one of those whose clients need not name it."""

_PATH = re.compile(r"/instances/([A-Za-z0-9-]{1,128})/mcp")
_OWNER_VALUE = re.compile(r"[\x21-\x7e]{1,128}")
_CREDENTIALS = struct.Struct("3i")


class Face:
    """Answers the gateway's requests."""

    def __init__(self, sessions: Sessions, log: FilteringBoundLogger):
        self._sessions = sessions
        self._stateless = StatelessFace(sessions.stateless)
        self._log = log
        self._http = web.Server(self._handle, handler_cancellation=True)

    async def listen(self, listening: socket.socket) -> asyncio.Server:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        # The event loop has the socket listen anew, with a queue of its own choice.
        return await loop.create_unix_server(lambda: _Connection(self._http), sock=listening, backlog=BACKLOG)

    async def close(self, seconds: float) -> None:
        """End what is still answered after so long."""
        await self._http.shutdown(seconds)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return refusal.response()
        except ConnectionError:
            raise
        except Exception as error:
            # The process's boundary. The text of the exception is left out, since it may quote a message.
            frames = traceback.format_tb(error.__traceback__)[-6:]
            self._log.error("failed", error=type(error).__name__, frames=frames)
            return Refusal.rpc(500, "internal", SERVER_ERROR, "Internal error of the session broker").response()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = _PATH.fullmatch(request.raw_path)
        if path is None:
            raise not_found()
        instance, owner = path[1], _owner(request)
        if names_no_handshake(request):
            return await self._stateless.answer(request, instance, owner)
        match request.method:
            case "POST":
                return await self._post(request, instance, owner)
            case "GET":
                return await self._listen(request, self._session(request, instance, owner))
            case "DELETE":
                self._session(request, instance, owner).end(Closing.CLIENT, "The session was ended by its client")
                return web.Response(status=204)
            case _:
                raise Refusal.rpc(
                    405, "method", INVALID_REQUEST, "POST, GET or DELETE", headers={"Allow": "POST, GET, DELETE"}
                )

    async def _post(self, request: web.BaseRequest, instance: str, owner: Owner) -> web.StreamResponse:
        raw = await read_body(request)
        try:
            heard = run(read(raw)) if is_quick(raw) else await self._sessions.turns.run(read(raw))
        except NotAMessage as error:
            raise Refusal.rpc(400, "body", PARSE_ERROR, str(error)) from None
        first = heard.requests[0].id if heard.requests and not heard.batch else None
        _check_version(request, heard)
        if any(asked.id is None for asked in heard.requests):
            raise Refusal.rpc(400, "id", INVALID_REQUEST, "The id of a request must be a string or a number")
        try:
            if SESSION not in request.headers:
                return await self._begin(instance, owner, heard, first)
            session = self._session(request, instance, owner, first)
            if any(message.method == INITIALIZE for message in heard.messages):
                raise Refusal.rpc(400, "initialize", INVALID_REQUEST, "This session is initialized already", id=first)
            sent = await session.send(heard, request.headers.get(VERSION))
        except SessionOver:
            raise _gone(first) from None
        except InputFull as full:
            raise input_full(str(full), first) from None
        except IdInUse as error:
            raise Refusal.rpc(400, "id", INVALID_REQUEST, str(error).capitalize(), id=first) from None
        except TooMany as many:
            raise later(503, str(many), first, RETRY_SECONDS) from None
        if sent is None:
            return web.Response(status=202)
        stream, outlet = sent
        try:
            return await self._exchange(request, outlet, batch=heard.batch)
        finally:
            session.leave(stream)

    async def _begin(self, instance: str, owner: Owner, heard: Heard, id: Id | None) -> web.StreamResponse:
        """A session of its own for an initialize request."""
        if heard.batch or heard.messages[0].method != INITIALIZE or not heard.requests:
            message = f"A session is needed: begin with {INITIALIZE}, and send the {SESSION} of its answer"
            raise Refusal.rpc(400, "session", SERVER_ERROR, message, id=id)
        try:
            session, said = await self._sessions.open(instance, owner, heard)
        except NoSession as none:
            raise no_session(none, id) from None
        except NotBegun as error:
            # In a good answer, as all errors of a server: clients show what it says, and give up.
            raise Refusal(200, "not-begun", rpc_error(SERVER_ERROR, str(error), id)) from None
        headers = {} if session is None else {SESSION: session.id}
        return web.Response(body=said.raw, content_type=JSON, headers=headers)

    def _session(self, request: web.BaseRequest, instance: str, owner: Owner, id: Id | None = None) -> Session:
        """Raises `Refusal`."""
        values = request.headers.getall(SESSION, [])
        if len(values) != 1:
            raise Refusal.rpc(400, "session", SERVER_ERROR, f"Exactly one {SESSION} is needed", id=id)
        session = self._sessions.find(instance, owner, values[0])
        if session is None:
            raise _gone(id)
        return session

    async def _exchange(self, request: web.BaseRequest, outlet: Outlet, *, batch: bool) -> web.StreamResponse:
        """Answer a POST: one document if the answer is the first thing for it, else events that end with the answer."""
        said = await outlet.take()
        if said is None:
            raise _gone(None)
        if batch or not said.last:
            response = web.StreamResponse(headers=EVENTS)
            await response.prepare(request)
            while said is not None:
                if not await tell(request, response, event(said.raw)):
                    break
                outlet.written(said)
                said = await outlet.take()
            return response
        response = web.StreamResponse(headers={"Content-Type": JSON})
        response.content_length = len(said.raw)
        await response.prepare(request)
        await tell(request, response, said.raw)
        outlet.written(said)
        return response

    async def _listen(self, request: web.BaseRequest, session: Session) -> web.StreamResponse:
        """Events that belong to no request, until either side ends."""
        try:
            stream, outlet = session.listen()
        except SessionOver:
            raise _gone(None) from None
        except TooMany as many:
            raise later(409, str(many), None, RETRY_SECONDS) from None
        try:
            response = web.StreamResponse(headers=EVENTS)
            await response.prepare(request)
            while (said := await outlet.take()) is not None:
                if not await tell(request, response, event(said.raw)):
                    break
                outlet.written(said)
            return response
        finally:
            session.leave(stream)


class _Connection(AuditedConnection):
    """A connection from a process of this process's own user; others are closed before they have said anything."""

    __slots__ = ()

    def __init__(self, server: web.Server):
        super().__init__(
            server,
            lambda _, refusal: refusal.response(),
            loop=asyncio.get_running_loop(),
            auto_decompress=False,
            tcp_keepalive=False,
            # aiohttp's default is a logger of its own, which would quote requests.
            access_log=cast("Any", None),
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if _peer_uid(transport) != os.getuid():
            cast("asyncio.Transport", transport).abort()


def _peer_uid(transport: asyncio.BaseTransport) -> int:
    connection: socket.socket = transport.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return cast("tuple[int, int, int]", _CREDENTIALS.unpack(raw))[1]


def _owner(request: web.BaseRequest) -> Owner:
    """Raises `Refusal`."""
    connections, tickets = (request.headers.getall(name, []) for name in (CONNECTION, PROBE))
    if len(connections) + len(tickets) != 1 or not _OWNER_VALUE.fullmatch((connections + tickets)[0]):
        raise Refusal.rpc(400, "owner", INVALID_REQUEST, f"Exactly one {CONNECTION} or {PROBE} is needed")
    if tickets:
        return Owner(ticket=tickets[0])
    route = request.headers.get(ROUTE, "")
    if route and not _OWNER_VALUE.fullmatch(route):
        raise Refusal.rpc(400, "route", INVALID_REQUEST, f"{ROUTE} is no route")
    return Owner(connection=connections[0], route=route)


def _check_version(request: web.BaseRequest, heard: Heard) -> None:
    """Raises `Refusal`."""
    if heard.batch and any(version != BATCHING_VERSION for version in request.headers.getall(VERSION, [])):
        raise Refusal.rpc(400, "batch", INVALID_REQUEST, f"Only {BATCHING_VERSION} has batches")


def _gone(id: Id | None) -> Refusal:
    return Refusal.rpc(404, "session", SESSION_NOT_FOUND, "Session not found; initialize again", id=id)

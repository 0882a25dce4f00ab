"""The part of the broker's HTTP side for revisions without handshake: each POST stands for itself (2026-07-28)."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from toolbox_dtma.broker.answers import (
    EVENTS,
    JSON,
    RETRY_SECONDS,
    VERSION,
    event,
    input_full,
    later,
    needs_handshake,
    no_session,
    read_body,
    tell,
)
from toolbox_dtma.broker.calls import METHOD_NOT_FOUND, Call
from toolbox_dtma.broker.control import NoSession
from toolbox_dtma.broker.messages import CANCELLED, INITIALIZE, PROGRESS, Id, NotAMessage
from toolbox_dtma.broker.outlets import Outlet, Said
from toolbox_dtma.broker.pipe import InputFull
from toolbox_dtma.broker.rewriting import MAX_ID_BYTES, Mark, Marked, Unclear, read
from toolbox_dtma.broker.routing import TooMany
from toolbox_dtma.broker.session import Owner, SessionOver
from toolbox_dtma.broker.shared import SharedProcess, Stated
from toolbox_dtma.broker.stateless import OtherEra, Stateless
from toolbox_dtma.gateway.parsing import INVALID_REQUEST, PARSE_ERROR, SERVER_ERROR, Kind
from toolbox_dtma.gateway.policy import HEADER_MISMATCH, INVALID_PARAMS
from toolbox_dtma.gateway.refusal import Refusal
from toolbox_dtma.gateway.skimming import is_quick, run

CALL_TOOL = "tools/call"
NEVER_ANSWERED = "The server ended this request without an answer"


class StatelessFace:
    """Answers requests that name such a revision. A session that one of them names too means nothing there."""

    def __init__(self, stateless: Stateless):
        self._stateless = stateless

    async def answer(self, request: web.BaseRequest, instance: str, owner: Owner) -> web.StreamResponse:
        """Raises `Refusal`."""
        if request.method != "POST":
            message = "This revision has no streams and no sessions beside its requests"
            raise Refusal.rpc(405, "method", INVALID_REQUEST, message, headers={"Allow": "POST"})
        raw = await read_body(request)
        try:
            work = read(raw, of_client=True)
            asked = run(work) if is_quick(raw) else await self._stateless.turns.run(work)
        except Unclear as error:
            raise Refusal.rpc(400, "body", INVALID_REQUEST, str(error).capitalize()) from None
        except NotAMessage as error:
            raise Refusal.rpc(400, "body", PARSE_ERROR, str(error)) from None
        match asked.kind:
            case Kind.RESPONSE:
                raise Refusal.rpc(400, "body", INVALID_REQUEST, "Clients send no responses in this revision")
            case Kind.NOTIFICATION:
                return await self._notify(asked, instance, owner)
            case Kind.REQUEST:
                id_ = _checked(request, asked)
                return await self._call(request, asked, id_, instance, owner)

    async def _notify(self, said: Marked, instance: str, owner: Owner) -> web.Response:
        """What names a request is nobody's: several clients of one connection may use the same id, and the client that
        wants to cancel one of its own hangs up. Nothing is started for a notification, which no server waits for.
        """
        process = self._stateless.find(instance, owner)
        if process is not None and said.method not in (CANCELLED, PROGRESS):
            with suppress(SessionOver):
                try:
                    await process.notify(said)
                except InputFull as full:
                    raise input_full(str(full), None) from None
        return web.Response(status=202)

    async def _call(
        self, request: web.BaseRequest, asked: Marked, id: Id, instance: str, owner: Owner
    ) -> web.StreamResponse:
        try:
            process = await self._stateless.get(instance, owner)
            await _check_params(request, process, asked, id)
            call, outlet = await process.begin(asked)
        except OtherEra:
            raise needs_handshake(id) from None
        except NoSession as none:
            raise no_session(none, id) from None
        except SessionOver as over:
            raise later(503, str(over), id, RETRY_SECONDS) from None
        except InputFull as full:
            raise input_full(str(full), id) from None
        except TooMany as many:
            raise later(503, str(many), id, RETRY_SECONDS) from None
        try:
            return await _exchange(request, call, outlet)
        finally:
            process.leave(call)


async def _exchange(request: web.BaseRequest, call: Call, outlet: Outlet) -> web.StreamResponse:
    """One document if the answer is the first thing that comes, else events that end with it."""
    said = await outlet.take()
    if said is None:
        said = Stated(call.error(SERVER_ERROR, NEVER_ANSWERED), last=True, failed=True)
    if said.last:
        response = web.StreamResponse(status=_status(said), headers={"Content-Type": JSON})
        response.content_length = len(said.raw)
        await response.prepare(request)
        await tell(request, response, said.raw)
        outlet.written(said)
        return response
    response = web.StreamResponse(headers=EVENTS)
    await response.prepare(request)
    following: Said | None = said
    while following is not None:
        if not await tell(request, response, event(following.raw)):
            break
        outlet.written(following)
        following = await outlet.take()
    return response


def _status(said: Said) -> int:
    return said.status if isinstance(said, Stated) else 200


def _checked(request: web.BaseRequest, asked: Marked) -> Id:
    """The id of a request that can be passed on. Raises `Refusal`."""
    id_ = asked.id(Mark.ID)
    if id_ is None:
        raise Refusal.rpc(400, "id", INVALID_REQUEST, "The id of a request must be a string or a number")
    token = asked.values.get(Mark.TOKEN)
    if token is not None and asked.id(Mark.TOKEN) is None:
        raise Refusal.rpc(400, "token", INVALID_PARAMS, "A progress token must be a string or a number", id=id_)
    if any(len(asked.written(mark) or b"") > MAX_ID_BYTES for mark in (Mark.ID, Mark.TOKEN)):
        message = f"An id or a progress token may have at most {MAX_ID_BYTES} bytes"
        raise Refusal.rpc(400, "id", INVALID_REQUEST, message)
    versions = request.headers.getall(VERSION, [])
    if asked.values.get(Mark.VERSION) is None:
        # A process takes the first request without it for the beginning of a handshake.
        message = "params._meta must name the revision of this request"
        raise Refusal.rpc(400, "version", INVALID_PARAMS, message, id=id_)
    if versions != [asked.values[Mark.VERSION]]:
        message = f"{VERSION} and the revision in params._meta must be equal"
        raise Refusal.rpc(400, "version", HEADER_MISMATCH, message, id=id_)
    if asked.method == INITIALIZE:
        message = f"This revision has no {INITIALIZE}; send it without {VERSION} to begin a session"
        raise Refusal.rpc(404, "initialize", METHOD_NOT_FOUND, message, id=id_)
    return id_


async def _check_params(request: web.BaseRequest, process: SharedProcess, asked: Marked, id: Id) -> None:
    """Raises `Refusal`."""
    if asked.method != CALL_TOOL:
        return
    headers: dict[str, list[str]] = {}
    for name, value in request.headers.items():
        headers.setdefault(name.lower(), []).append(value)
    problem = await process.mismatch(asked, headers)
    if problem is not None:
        raise Refusal.rpc(400, "params", HEADER_MISMATCH, f"The header {problem}", id=id)

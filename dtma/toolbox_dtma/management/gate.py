"""What every request passes before the application sees it: token, size, and a count at the end."""

from __future__ import annotations

import hmac
import ipaddress

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolbox_dtma.management.problems import Refused, problem_response, unexpected
from toolbox_dtma.metrics import Metrics
from toolbox_dtma.wire import ProblemCode

log = structlog.get_logger("toolbox_dtma.api")

OPEN_ON_LOOPBACK = frozenset({"/healthz", "/readyz", "/metrics"})


def is_loopback(host: str | None) -> bool:
    """Whether a peer address is this machine's own; names and garbage are not."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


class Gate:
    """ASGI application around the API."""

    def __init__(self, app: ASGIApp, *, token: str, body_bytes: int, metrics: Metrics):
        self._app = app
        self._token = token.encode()
        self._body_bytes = body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; websockets are refused."""
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected {scope['type']} scope")
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, self._limited(scope, receive), counted)
        except Refused as refused:
            await problem_response(refused)(scope, receive, counted)
        except Exception as error:
            # Boundary of one request: the caller gets an answer, the log the traceback, the process goes on.
            problem = unexpected(error)
            if problem.code is ProblemCode.DISK_FULL:
                log.error("the disk is full: a change was refused", method=scope["method"], route=_route(scope))
            else:
                log.exception("request failed", method=scope["method"], route=_route(scope))
            if status == 0:
                await problem_response(problem)(scope, receive, counted)
        finally:
            self._metrics.request(scope["method"] if _route(scope) else "OTHER", _route(scope) or "unmatched", status)

    def _admit(self, scope: Scope) -> None:
        client = scope.get("client")
        if scope["path"] in OPEN_ON_LOOPBACK and is_loopback(client[0] if client else None):
            return
        headers = Headers(scope=scope)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            raise Refused(ProblemCode.UNAUTHENTICATED)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._body_bytes:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(ProblemCode.TOO_LARGE, f"a request body may have {self._body_bytes} bytes")

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self._body_bytes:
                    # The one exception type that the framework passes on from its body parser.
                    raise HTTPException(413)
            return message

        return limited


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return getattr(route, "path", "") if route is not None else ""

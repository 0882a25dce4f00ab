"""Answers of the gateway itself: JSON-RPC errors with the HTTP status each protocol era expects (design §6)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

from aiohttp import web

from toolbox_dtma.gateway.parsing import SERVER_ERROR, Body, Kind, RpcId
from toolbox_dtma.gateway.policy import METHOD_NOT_FOUND, Denial

SESSION_NOT_FOUND = -32001
BROKE_OFF = "The server broke off its answer"
RETRY_SECONDS = 2
"""Retry-After while an instance or the policy is away."""


class Refusal(Exception):
    """The request is answered here. `reason` is a stable word for the access log."""

    def __init__(self, status: int, reason: str, payload: object, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.payload = payload
        self.headers = dict(headers or {})
        self.holder: dict[str, str] = {}
        """For the log: connection and instance of the credential that was used, where it is a valid one."""

    @classmethod
    def rpc(
        cls,
        status: int,
        reason: str,
        code: int,
        message: str,
        *,
        id: RpcId = None,
        headers: Mapping[str, str] | None = None,
    ) -> Refusal:
        """A refusal with one JSON-RPC error."""
        return cls(status, reason, rpc_error(code, message, id), headers)

    @cached_property
    def body(self) -> bytes:
        """The body of the HTTP answer."""
        return encoded(self.payload)

    def response(self) -> web.Response:
        """The HTTP answer, which no cache may keep."""
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **self.headers}
        return web.Response(status=self.status, body=self.body, headers=headers)


def rpc_error(code: int, message: str, id: RpcId = None, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One JSON-RPC error message."""
    error = {"code": code, "message": message, **({} if data is None else {"data": data})}
    return {"jsonrpc": "2.0", "id": id, "error": error}


def encoded(message: object) -> bytes:
    """A message of the gateway's own."""
    return json.dumps(message, separators=(",", ":")).encode()


def errors(ids: Sequence[RpcId], text: str, data: Mapping[str, Any] | None = None) -> list[bytes]:
    """An error of the gateway's own for each request."""
    return [encoded(rpc_error(SERVER_ERROR, text, id, data)) for id in ids]


class Asker(NamedTuple):
    """To whom an answer of the gateway itself is addressed, and in which era's way."""

    ids: tuple[RpcId, ...] = ()
    """Of every request; without any there is nobody to address an error to."""
    batch: bool = False
    modern: bool = False
    """Whether of a revision without handshake."""

    @classmethod
    def of(cls, body: Body, *, modern: bool) -> Asker:
        """Who sent this body."""
        ids = tuple(message.id for message in body.messages if message.kind is Kind.REQUEST)
        return cls(ids, body.batch, modern)

    def refusal(self, status: int, reason: str, message: str, *, wait: float | None = None) -> Refusal:
        """A refusal with code -32000. `wait`: seconds after which the client may try again.

        `status` is for 2026-07-28 and for what is no request; before, requests are answered with 200.
        """
        data, headers = None, {}
        if wait is not None:
            data, headers = {"retryAfterMs": max(ceil(wait * 1000), 1)}, {"Retry-After": str(max(ceil(wait), 1))}
        errors = [rpc_error(SERVER_ERROR, message, id, data) for id in self.ids or (None,)]
        answered = 200 if self.ids and not self.modern else status
        return Refusal(answered, reason, errors if self.batch and self.ids else errors[0], headers)


def denied(denials: Sequence[Denial], *, batch: bool, modern: bool) -> Refusal:
    """The answer to a body that policy refuses.

    Before 2026-07-28 a request is answered with 200, because clients end their session on 4xx.
    """
    answerable = [denial for denial in denials if denial.answerable]
    errors = [rpc_error(denial.code, denial.message, denial.id) for denial in answerable]
    if not errors:
        return Refusal(400, "denied", rpc_error(denials[0].code, denials[0].message))
    if not modern:
        return Refusal(200, "denied", errors if batch else errors[0])
    return Refusal(404 if answerable[0].code == METHOD_NOT_FOUND else 400, "denied", errors[0])


def unauthorized() -> Refusal:
    """401: no token, an unknown one, or one that has ended."""
    challenge = 'Bearer realm="magic-toolbox", error="invalid_token"'
    return Refusal.rpc(
        401, "unauthorized", SERVER_ERROR, "A valid bearer token is needed", headers={"WWW-Authenticate": challenge}
    )


def not_found() -> Refusal:
    """404 for a path that is not ours."""
    return Refusal(404, "path", {"error": "not found"})


def unavailable(reason: str, message: str, id: RpcId = None) -> Refusal:
    """503 with Retry-After: what is asked for exists, but not now."""
    return Refusal.rpc(503, reason, SERVER_ERROR, message, id=id, headers={"Retry-After": str(RETRY_SECONDS)})


def bad_gateway(reason: str, message: str, id: RpcId = None) -> Refusal:
    """502: the server answered in a way that must not be passed on, or broke off."""
    return Refusal.rpc(502, reason, SERVER_ERROR, message, id=id)

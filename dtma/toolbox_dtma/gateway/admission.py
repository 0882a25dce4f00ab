"""Who may talk to which instance: everything that is decided before a body is read (design §6)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from multidict import CIMultiDictProxy

from toolbox_dtma.gateway.parsing import SERVER_ERROR
from toolbox_dtma.gateway.refusal import Refusal, not_found, unauthorized, unavailable
from toolbox_dtma.gateway.state import Admitted, PolicyState
from toolbox_dtma.gateway.throttle import FailureThrottle
from toolbox_dtma.wire import HostConfig

MCP, SSE, MESSAGES = "mcp", "sse", "messages"
"""The doors of a server: streamable HTTP, and the two of HTTP+SSE."""
METHODS = {
    MCP: ("GET", "POST", "DELETE", "OPTIONS"),
    SSE: ("GET", "OPTIONS"),
    MESSAGES: ("POST", "OPTIONS"),
}

_PATH = re.compile(r"/servers/([A-Za-z0-9-]{1,128})/(mcp|sse|messages)")
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""Name or address, and perhaps a port; no part of a URL besides."""
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([\x21-\x7e]{1,1024}) *")


class Ask(NamedTuple):
    """The head of a request."""

    method: str
    path: str
    """As sent, the query included."""
    headers: CIMultiDictProxy[str]
    source: str
    """Address of the client."""


def admit(ask: Ask, state: PolicyState, throttle: FailureThrottle) -> Admitted:
    """The grant under which a request runs. Raises `Refusal`, with the holder of a valid credential."""
    held = state.authenticate(_token(ask.headers)) if state.serving else ()
    try:
        return _admit(ask, held, state, throttle)
    except Refusal as refusal:
        if held:
            refusal.holder = {"connection": held[0].grant.uid, "instance": held[0].grant.instance}
        raise


def door_of(path: str) -> str:
    """Which of the doors an admitted request came to."""
    return path.partition("?")[0].rpartition("/")[2]


def _admit(ask: Ask, held: tuple[Admitted, ...], state: PolicyState, throttle: FailureThrottle) -> Admitted:
    # The raw path is compared: nothing is decoded, so nothing can be hidden in an encoding.
    match = _PATH.fullmatch(ask.path.partition("?")[0])
    if match is None:
        raise not_found()
    if not state.serving:
        raise unavailable("no-policy", "The gateway has no current policy; try again")
    _check_browser(ask.headers, state.config)
    methods = METHODS[match[2]]
    if ask.method not in methods:
        raise Refusal.rpc(405, "method", SERVER_ERROR, "Method not allowed", headers={"Allow": ", ".join(methods)})
    if not held:
        wait = throttle.failed(ask.source)
        if wait is None:
            raise unauthorized()
        raise Refusal.rpc(
            429,
            "throttled",
            SERVER_ERROR,
            "Too many failed attempts from this address",
            headers={"Retry-After": str(int(wait) + 1)},
        )
    for candidate in held:
        if candidate.grant.instance == match[1]:
            return candidate
    raise Refusal.rpc(403, "other-instance", SERVER_ERROR, "This token is not valid for this server")


def _token(headers: CIMultiDictProxy[str]) -> str:
    """The bearer token, or the empty string, which opens nothing."""
    values = headers.getall("Authorization", [])
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
    return match[1] if match else ""


def _check_browser(headers: CIMultiDictProxy[str], config: HostConfig | None) -> None:
    """Refuse what only a browser led astray would send: another site's Origin, a rebound Host."""
    hosts = headers.getall("Host", [])
    if config is not None and [_hostname(host) for host in hosts] != [_hostname_of_url(config.gateway_url)]:
        raise Refusal.rpc(421, "host", SERVER_ERROR, "This gateway does not answer for that host")
    allowed = config.allowed_origins if config is not None else ()
    if any(origin not in allowed for origin in headers.getall("Origin", [])):
        raise Refusal.rpc(403, "origin", SERVER_ERROR, "Requests from this origin are not allowed")


@lru_cache(maxsize=256)
def _hostname(host: str) -> str | None:
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").lower() if found is not None else None


@lru_cache(maxsize=1)
def _hostname_of_url(url: str) -> str | None:
    return urlsplit(url).hostname

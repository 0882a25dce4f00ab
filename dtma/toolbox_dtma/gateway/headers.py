"""Which headers pass, both ways (design §6). Everything that is not named here is dropped."""

from __future__ import annotations

from functools import lru_cache

from multidict import CIMultiDict, CIMultiDictProxy

SESSION = "Mcp-Session-Id"
CONNECTION = "Mcp-Toolbox-Connection"
PROBE = "Mcp-Toolbox-Probe"
"""In its place for a probe that goes through the session broker: the ticket that DTMA gave out with it."""
ROUTE = "Mcp-Toolbox-Route"
"""The incarnation of the route to the session broker: what is begun by an old one would be lost at once."""
LAST_EVENT_ID = "Last-Event-ID"
EVENT_STREAM = "text/event-stream"

_UP = frozenset(
    {"content-type", "accept", "mcp-protocol-version", "mcp-method", "mcp-name", "traceparent", "tracestate"}
)
_UP_PREFIX = "mcp-param-"
_SHORT_NAME = 64
"""Only names of up to so many characters are remembered, so that clients cannot fill the memory with them."""
_DOWN = ("Content-Type", "Cache-Control", "Allow", "Retry-After")
_SHARED = ("public", "s-maxage", "must-revalidate")
"""What lets a shared cache keep the answer to a request with a credential (RFC 9111, section 3.5)."""


class HeaderRefused(Exception):
    """A header to be passed on holds something that no header may."""


def upstream_headers(
    received: CIMultiDictProxy[str],
    *,
    connection: str,
    port: int,
    session: str | None,
    last_event_id: str | None = None,
    route: str | None = None,
) -> CIMultiDict[str]:
    """Headers for the server; `session` and `last_event_id` are the server's own. Raises `HeaderRefused`.

    `port` is 0 for a server behind the session broker, which alone is told the `route`.
    """
    headers = CIMultiDict[str]()
    for name, value in received.items():
        if _known_to_go_up(name) if len(name) <= _SHORT_NAME else _goes_up(name):
            if not _is_plain(value):
                raise HeaderRefused(f"the header {name.lower()} must be printable ASCII")
            headers.add(name, value)
    headers["Accept-Encoding"] = "identity"
    # Servers refuse names they don't know, as a defence against DNS rebinding; this one they all accept.
    headers["Host"] = f"localhost:{port}" if port else "localhost"
    headers[CONNECTION] = connection
    if route is not None:
        headers[ROUTE] = route
    if session is not None:
        headers[SESSION] = session
    if last_event_id is not None:
        headers[LAST_EVENT_ID] = last_event_id
    return headers


def _goes_up(name: str) -> bool:
    lower = name.lower()
    return lower in _UP or lower.startswith(_UP_PREFIX)


_known_to_go_up = lru_cache(maxsize=1024)(_goes_up)


def downstream_headers(received: CIMultiDictProxy[str], *, session: str | None) -> CIMultiDict[str]:
    """Headers for the client; `session` is the signed id, if the server sent one."""
    headers = CIMultiDict[str]()
    for name in _DOWN:
        values = received.getall(name, [])
        if len(values) == 1 and _is_plain(values[0]):
            headers[name] = values[0]
    if media_type(received) == EVENT_STREAM:
        # By its specification UTF-8; a client that believed another charset would read other events than policy does.
        headers["Content-Type"] = EVENT_STREAM
    caching = headers.get("Cache-Control", "").lower()
    if any(directive in caching for directive in _SHARED):
        # An answer to one credential must never be kept for another.
        headers["Cache-Control"] = "no-store"
    if session is not None:
        headers[SESSION] = session
    return headers


def unreadable(received: CIMultiDictProxy[str]) -> str | None:
    """Why an answer must not be passed on, as a word for the log: encoded, or an event stream to some clients only.

    Clients look for the type at the start of Content-Type, or anywhere in it.
    """
    if any(coding.strip().lower() not in ("", "identity") for coding in received.getall("Content-Encoding", [])):
        return "upstream-encoded"
    types = received.getall("Content-Type", [])
    if "event-stream" in ",".join(types).lower() and (len(types) > 1 or media_type(received) != EVENT_STREAM):
        return "upstream-type"
    return None


def media_type(headers: CIMultiDictProxy[str]) -> str:
    """The essence of Content-Type in lower case; empty if absent."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable()

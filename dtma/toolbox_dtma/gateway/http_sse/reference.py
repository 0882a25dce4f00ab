"""Where a client is told to POST: which worker has its stream, and which stream it is, signed like a session id. Pure.

The reference is relative (HTTP+SSE, 2024-11-05): clients refuse one of another origin.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from toolbox_dtma.gateway.sessions import Binding, SessionIds

KIND = "sse"
PARAMETER = "sessionId"
"""What the SDKs call it; their clients look for it by this name."""

_UPSTREAM = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Place:
    """One stream of one worker."""

    worker: str
    stream: str


def new_name() -> str:
    """For a worker or a stream, never the same twice."""
    return secrets.token_hex(16)


def binding_of(connection: str, instance: str) -> Binding:
    """Whom a reference belongs to. Not the container: its successor answers by itself that it knows no session."""
    return Binding(connection, instance, "", kind=KIND)


def reference(ids: SessionIds, place: Place, binding: Binding, issued_at: int) -> str:
    """What the `endpoint` event says. `issued_at` is in Unix seconds."""
    return path_of(binding.instance, ids.sign(f"{place.worker}.{place.stream}", binding, issued_at))


def path_of(instance: str, signed: str) -> str:
    """Where to POST, without an origin."""
    return f"/servers/{instance}/messages?{PARAMETER}={signed}"


def named(path: str) -> str | None:
    """The signed part of where a POST went to; None unless there is exactly one."""
    parameters = [part.partition("=") for part in path.partition("?")[2].split("&")]
    values = [value for name, _, value in parameters if name == PARAMETER]
    return values[0] if len(values) == 1 else None


def locate(ids: SessionIds, signed: str, binding: Binding) -> Place | None:
    """The stream that a POST is for; None if it was not given to this connection."""
    upstream = ids.verify(signed, binding)
    found = _UPSTREAM.fullmatch(upstream) if upstream is not None else None
    return None if found is None else Place(found[1], found[2])

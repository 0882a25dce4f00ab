"""Where a server of the SSE transport takes messages: what its `endpoint` event says, held to its own origin. Pure.

MCP 2024-11-05, "HTTP with SSE"; the reference is resolved against the URL of the stream (RFC 3986, section 5).
"""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

MAX_REFERENCE_BYTES = 2048
NAME = "localhost"
"""The host that requests to servers name, which none of them refuses (design §6)."""
_SHOWN_CHARACTERS = 100
_HTTP_PORT = 80

_REFERENCE = re.compile(rb"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
"""All that may be in a URI; a line break, a space or a quote cannot get into a request line."""


class BadEndpoint(ValueError):
    """It cannot be used; the text says why, in words for who runs the server."""


def message_path(reference: bytes, address: str, port: int, path: str) -> str:
    """Path and query of the POSTs, for a server whose stream is at `path`. Raises `BadEndpoint`.

    The server may call itself by its address or by the host that we ask it for: both are its origin.
    """
    reference = reference.strip(b" \t")
    shown = "".join(c if c.isprintable() else "?" for c in reference[:_SHOWN_CHARACTERS].decode(errors="replace"))
    if len(reference) > MAX_REFERENCE_BYTES:
        raise BadEndpoint(f"its endpoint event is longer than {MAX_REFERENCE_BYTES} bytes")
    if not _REFERENCE.fullmatch(reference):
        raise BadEndpoint(f"its endpoint event holds no URL: {shown}")
    try:
        url = urlsplit(urljoin(f"http://{NAME}:{port}{path}", reference.decode("ascii")))
        host, named = url.hostname, url.port
    except ValueError:
        raise BadEndpoint(f"its endpoint event holds no URL: {shown}") from None
    own = host in (NAME, address) and (_HTTP_PORT if named is None else named) == port
    if url.scheme != "http" or url.username is not None or not own:
        raise BadEndpoint(f"its endpoint event names another origin than its own: {shown}")
    return (url.path or "/") + (f"?{url.query}" if url.query else "")

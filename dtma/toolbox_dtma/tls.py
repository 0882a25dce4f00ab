"""TLS of both servers on a host: contexts made from bytes that were checked before."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable


def server_context(pem: bytes) -> ssl.SSLContext:
    """TLS 1.2 or newer with this chain and key, both in one PEM text. Raises `ssl.SSLError`.

    A renewed pair gets a context of its own. `load_cert_chain` on one in use would keep the old certificate beside the
    new one when the kind of key changes (OpenSSL has a place for each kind), and go on offering it.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # OpenSSL takes files only. This one is memory: what is loaded is what was checked, and nothing is left on a disk.
    descriptor = os.memfd_create("tls")
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def following_context(pem: Callable[[], bytes]) -> ssl.SSLContext:
    """A context for a server that keeps one for good: each handshake is served with what `pem` gives at that moment.

    Raises `ssl.SSLError`, here for what `pem` gives first; what it gives later has to be checked by whoever gives it.
    """
    first = server_context(pem())
    present = (pem(), first)

    # OpenSSL asks at every client hello, also at one without a server name.
    def serve_present(
        connection: ssl.SSLSocket | ssl.SSLObject, server_name: str | None, context: ssl.SSLContext
    ) -> None:
        nonlocal present
        del server_name, context
        wanted = pem()
        if wanted != present[0]:
            present = (wanted, server_context(wanted))
        connection.context = present[1]

    first.sni_callback = serve_present
    return first

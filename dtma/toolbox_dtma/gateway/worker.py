"""One worker: `python -m toolbox_dtma.gateway.worker`, started by the supervisor only."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import ssl
import sys
import time
from pathlib import Path

import uvloop
from aiohttp import web
from structlog.typing import FilteringBoundLogger

from toolbox_dtma.gateway.exchanges import Cause, Exchanges
from toolbox_dtma.gateway.link import Link
from toolbox_dtma.gateway.probing import Probing
from toolbox_dtma.gateway.process import configure_logging, die_with_parent
from toolbox_dtma.gateway.relay import Relay
from toolbox_dtma.gateway.server import Gateway
from toolbox_dtma.gateway.settings import GatewaySettings, load_settings
from toolbox_dtma.gateway.state import PolicyState
from toolbox_dtma.gateway.stepping import Stepper
from toolbox_dtma.gateway.throttle import FailureThrottle
from toolbox_dtma.gateway.upstream.client import UpstreamClient

BACKLOG = 1024
KEEPALIVE_SECONDS = 75.0
HANDSHAKE_SECONDS = 10.0
FIRST_POLICY_SECONDS = 2.0
"""How long a new worker leaves connections in the kernel's queue, rather than refuse them for want of a policy."""


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the configured certificate; None for plain HTTP."""
    if settings.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def serve(settings: GatewaySettings, listening: socket.socket, name: str, log: FilteringBoundLogger) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    state = PolicyState(unix_clock=time.time, monotonic=time.monotonic, grace_seconds=settings.policy_grace_seconds)
    exchanges = Exchanges(unix_clock=time.time)
    async with UpstreamClient() as client:
        stepper = Stepper()
        relay = Relay(client, state, exchanges, stepper, unix_clock=time.time)
        gateway = Gateway(state, exchanges, relay, FailureThrottle(monotonic=time.monotonic), stepper, log)
        http = web.Server(
            gateway.handle,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
        )
        probing = Probing(log)
        await probing.start()
        link = Link(
            settings.socket,
            worker=name,
            pid=os.getpid(),
            state=state,
            exchanges=exchanges,
            prober=probing.probe,
            log=log,
        )
        linking = asyncio.create_task(link.run())
        first = (asyncio.create_task(link.informed.wait()), asyncio.create_task(stopping.wait()))
        await asyncio.wait(first, timeout=FIRST_POLICY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for waiting in first:
            waiting.cancel()
        context = tls_context(settings)
        server = await loop.create_server(
            http,
            sock=listening,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if context is not None else None,
            backlog=BACKLOG,
        )
        log.info("serving", worker=name)
        await stopping.wait()
        log.info("draining", worker=name, running=exchanges.count)
        server.close()
        # These would never end by themselves; their clients connect again, to another worker.
        exchanges.abort_all(Cause.STOPPING, listening_only=True)
        await http.shutdown(settings.drain_seconds)
        await relay.close()
        # Last, so that a revocation is still obeyed while calls run to their end.
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)
        await probing.close()


def main() -> int:
    """Parse the command line and serve. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="toolbox_dtma.gateway.worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--name", required=True, help="name of this worker, unique on the host")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the listening socket")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor")
    options = parser.parse_args()
    if not die_with_parent(options.parent):
        return 1
    log = configure_logging("worker")
    settings = load_settings(options.config)
    uvloop.run(serve(settings, socket.socket(fileno=options.fd), options.name, log))
    return 0


if __name__ == "__main__":
    sys.exit(main())

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

import uvloop
from structlog.typing import FilteringBoundLogger

from toolbox_dtma.gateway.accounting import Meter
from toolbox_dtma.gateway.backlog import Backlog, map_memory
from toolbox_dtma.gateway.clients import Clients, Share
from toolbox_dtma.gateway.connection import Server
from toolbox_dtma.gateway.control import Certificate, Control
from toolbox_dtma.gateway.counts import Counts, SharedMemory
from toolbox_dtma.gateway.draining import LAST_SECONDS, drain
from toolbox_dtma.gateway.exchanges import Exchanges
from toolbox_dtma.gateway.http_sse.front import Front
from toolbox_dtma.gateway.http_sse.inside import Inside
from toolbox_dtma.gateway.link import Link
from toolbox_dtma.gateway.listener import Listener
from toolbox_dtma.gateway.probing import Probing
from toolbox_dtma.gateway.process import configure_logging, die_with_parent, keep_large_buffers_apart
from toolbox_dtma.gateway.relay import Relay
from toolbox_dtma.gateway.reporting import Reporter, is_entry
from toolbox_dtma.gateway.server import Gateway
from toolbox_dtma.gateway.settings import GatewaySettings
from toolbox_dtma.gateway.state import PolicyState
from toolbox_dtma.gateway.stepping import Stepper
from toolbox_dtma.gateway.throttle import FailureThrottle
from toolbox_dtma.gateway.upstream.client import UpstreamClient
from toolbox_dtma.link.messages import Cut, Vitals
from toolbox_dtma.tls import server_context

CLOSE_STREAMS_SECONDS = 1.5
"""How long servers may take to hear that the sessions of HTTP+SSE clients are over."""
SETTLE_SECONDS = 1.0
"""How long requests that were cut off at the end of the drain may take to notice."""
HAND_OVER_SECONDS = 3.0
"""How long DTMA may take for the last call records; with the above less than the supervisor waits."""
HAND_OVER_REPLACED_SECONDS = 45.0
"""The same where another worker serves already."""
SWITCH_SECONDS = 0.001
FIRST_POLICY_SECONDS = 2.0
"""How long a new worker leaves connections in the kernel's queue, rather than refuse them for want of a policy."""
FULL = frozenset({Cut.TOTAL, Cut.SOURCE, Cut.DESCRIPTORS})
"""Worth a line in the log: a bound to raise, or somebody to stop. The rest is the daily noise of an open port."""


class Standing:
    """How the supervisor wants this worker: with which certificate, and for how long."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self.ending = asyncio.Event()
        self.replaced = asyncio.Event()
        """Another worker serves on the same socket."""
        self.certified = asyncio.Event()
        self.context: ssl.SSLContext | None = None
        self.certificate: Certificate | None = None

    def certify(self, certificate: Certificate) -> None:
        """New connections get this certificate; the others keep theirs."""
        if self.certificate is None or self.certificate.pem != certificate.pem:
            self.context = server_context(certificate.pem)
            self.context.set_alpn_protocols(["http/1.1"])
        self.certificate = certificate
        self.certified.set()

    def drain(self) -> None:
        """End in peace."""
        self.replaced.set()
        self.ending.set()

    def stop(self) -> None:
        """End now: nobody serves in our place."""
        self.replaced.clear()
        self.ending.set()

    def vitals(self, clients: Clients) -> Vitals:
        """What DTMA is told."""
        certificate, cuts = self.certificate, clients.take_cuts()
        if full := {why.value: number for why, number in cuts.items() if why in FULL}:
            self._log.warning("clients-refused", connections=clients.connections, **full)
        return Vitals(
            connections=clients.connections,
            cuts=cuts,
            certificate_expires=certificate.expires if certificate is not None else None,
            certificate_refused=certificate is not None and certificate.refused,
        )


async def serve(settings: GatewaySettings, options: argparse.Namespace, log: FilteringBoundLogger) -> None:
    """Serve until SIGTERM, SIGINT or the supervisor's word, then drain."""
    loop = asyncio.get_running_loop()
    standing = Standing(log)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, standing.stop)
    control = Control(
        socket.socket(fileno=options.control), certificate=standing.certify, drain=standing.drain, log=log
    )
    state = PolicyState(unix_clock=time.time, monotonic=time.monotonic, grace_seconds=settings.policy_grace_seconds)
    exchanges = Exchanges(unix_clock=time.time)
    backlog = Backlog(map_memory(options.calls_fd), is_valid=is_entry)
    reporter = Reporter(backlog)
    meter = Meter(backlog, reporter, unix_clock=time.time, monotonic=time.monotonic)
    memory = SharedMemory(options.memory_fd, options.fence_fd, options.columns)
    counts = Counts(memory.map(), options.column, fence=memory.pass_fence, monotonic=time.monotonic)
    clients = Clients(Share(options.connections, options.per_source))
    async with UpstreamClient() as client:
        stepper = Stepper()
        inside = Inside(
            lambda request: gateway.handle(request),
            lambda request, refusal: gateway.refused(request, refusal),
            settings.clients,
        )
        sse = Front(inside, state, clients, stepper, log, unix_clock=time.time)
        relay = Relay(client, state, exchanges, stepper, unix_clock=time.time)
        throttle = FailureThrottle(monotonic=time.monotonic)
        gateway: Gateway = Gateway(state, exchanges, relay, throttle, stepper, counts, meter, sse, log)
        server = Server(gateway.handle, settings.clients, clients, gateway.refused)
        probing = Probing(log)
        await inside.start()
        await probing.start()
        link = Link(
            settings.socket,
            worker=options.name,
            pid=os.getpid(),
            state=state,
            exchanges=exchanges,
            prober=probing.probe,
            reporter=reporter,
            vitals=lambda: standing.vitals(clients),
            log=log,
        )
        linking = asyncio.create_task(link.run())
        # One that replaces another waits as long as it takes: until it serves, the other does.
        await _any(None if options.replaces else FIRST_POLICY_SECONDS, link.informed, standing.ending)
        if settings.tls_certificate is not None:
            await _any(None, standing.certified, standing.ending)
        listener = Listener(
            socket.socket(fileno=options.fd),
            server,
            clients,
            context=lambda: standing.context,
            handshake_seconds=settings.clients.handshake_seconds,
        )
        if not standing.ending.is_set():
            listener.start()
            control.serving()
            log.info("serving", worker=options.name)
        await standing.ending.wait()
        log.info("draining", worker=options.name, running=exchanges.count, connections=clients.connections)
        await drain(listener, server, exchanges, seconds=settings.drain_seconds, patient=standing.replaced)
        await sse.close(CLOSE_STREAMS_SECONDS)
        await inside.close(LAST_SECONDS)
        await relay.close()
        patience = HAND_OVER_REPLACED_SECONDS if standing.replaced.is_set() else HAND_OVER_SECONDS
        await _hand_over(reporter, exchanges, patience, log)
        # Last, so that a revocation is still obeyed while calls run to their end.
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)
        control.close()
        await probing.close()


async def _hand_over(reporter: Reporter, exchanges: Exchanges, seconds: float, log: FilteringBoundLogger) -> None:
    """Leave nothing behind: the memory of call records ends with the supervisor."""
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            await exchanges.ended()
    except TimeoutError:
        log.warning("calls-unsettled", running=exchanges.count)
    left = await reporter.hand_over(seconds)
    if left:
        log.warning("calls-lost", bytes=left)


async def _any(seconds: float | None, *events: asyncio.Event) -> None:
    """Return once one of the events is set, or the time is over."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def main() -> int:
    """Parse the command line and serve. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="toolbox_dtma.gateway.worker", description=__doc__)
    parser.add_argument("--settings", required=True, help="gateway.json as the supervisor read it")
    parser.add_argument("--name", required=True, help="what it calls itself in the log and to DTMA")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the listening socket")
    parser.add_argument("--control", type=int, required=True, help="file descriptor of the socket to the supervisor")
    parser.add_argument("--memory-fd", type=int, required=True, help="memory in which all workers count")
    parser.add_argument("--fence-fd", type=int, required=True, help="eventfd that orders their counting")
    parser.add_argument("--column", type=int, required=True, help="the column of that memory this worker writes")
    parser.add_argument("--columns", type=int, required=True, help="how many there are")
    parser.add_argument("--calls-fd", type=int, required=True, help="file descriptor of the memory for call records")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor")
    parser.add_argument("--connections", type=int, required=True, help="most open connections")
    parser.add_argument("--per-source", type=int, required=True, help="most open connections of one address")
    parser.add_argument("--replaces", action="store_true", help="another worker serves until this one does")
    options = parser.parse_args()
    if not die_with_parent(options.parent):
        return 1
    keep_large_buffers_apart()
    log = configure_logging("worker")
    settings = GatewaySettings.model_validate_json(options.settings)
    # A thread that hashes tools gives way to requests after this time.
    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(serve(settings, options, log))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m toolbox_dtma.broker`: the session broker, started by DTMA as the gateway's user."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import socket
import sys

import uvloop
from structlog.typing import FilteringBoundLogger

from toolbox_dtma.broker.control import ControlBroken
from toolbox_dtma.broker.face import Face
from toolbox_dtma.broker.sessions import Sessions
from toolbox_dtma.gateway.process import configure_logging, die_with_parent

MAX_ADDRESS_SPACE = 2 * 1024 * 1024 * 1024
"""Bytes. What may wait for all sessions together is bounded far below; this is for what nobody thought of."""
MAX_DESCRIPTORS = 64 * 1024
SETTLE_SECONDS = 1.0
"""How long the last answers may take to leave."""


async def serve(listening: socket.socket, control: socket.socket, log: FilteringBoundLogger) -> None:
    """Serve until SIGTERM or DTMA's end, then end every session. Raises `ControlBroken`."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    sessions = Sessions(control, log)
    face = Face(sessions, log)
    server = await face.listen(listening)
    lost = sessions.control.lost
    lost.add_done_callback(lambda _: stopping.set())
    sessions.control.ready()
    log.info("serving")
    await stopping.wait()
    log.info("stopping", sessions=len(sessions))
    server.close()
    await sessions.close()
    await face.close(SETTLE_SECONDS)
    if lost.done():
        lost.result()


def _bound(what: int, most: int) -> None:
    """Set a limit of this process, as high as whoever started it allows."""
    _, allowed = resource.getrlimit(what)
    limit = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(what, (limit, limit))


def main() -> int:
    """Parse the command line and serve. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="toolbox_dtma.broker", description=__doc__)
    parser.add_argument("--listen-fd", type=int, required=True, help="file descriptor of the bound unix socket")
    parser.add_argument("--control-fd", type=int, required=True, help="file descriptor of the socket to DTMA")
    options = parser.parse_args()
    # Should DTMA have ended before this call, the control socket says so.
    die_with_parent(os.getppid())
    log = configure_logging("broker", part="broker")
    _bound(resource.RLIMIT_AS, MAX_ADDRESS_SPACE)
    _bound(resource.RLIMIT_NOFILE, MAX_DESCRIPTORS)
    listening, control = socket.socket(fileno=options.listen_fd), socket.socket(fileno=options.control_fd)
    try:
        uvloop.run(serve(listening, control, log))
    except ControlBroken as error:
        log.error("control-broken", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

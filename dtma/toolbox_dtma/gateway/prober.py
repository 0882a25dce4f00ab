"""The process that holds probe conversations, so that what a hostile server sends never reaches a worker's memory.

`python -m toolbox_dtma.gateway.prober`, started by a worker, reads requests from a socket and writes results to it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import sys

from toolbox_dtma.gateway.probe import probe
from toolbox_dtma.gateway.process import configure_logging, die_with_parent
from toolbox_dtma.link.framing import FrameError, encode_frame, read_frame
from toolbox_dtma.link.messages import Hello, ProbeRequest, ProbeResult
from toolbox_dtma.wire import ProbeReport

MAX_ADDRESS_SPACE = 2 * 1024 * 1024 * 1024
"""Bytes. A server that makes this process want more ends it, and nothing else."""


async def serve(connection: socket.socket) -> None:
    """Say that it takes requests, then answer them until the worker closes its end."""
    reader, writer = await asyncio.open_connection(sock=connection)
    writer.write(encode_frame(Hello(worker="prober", pid=os.getpid(), revision=0)))
    tasks: set[asyncio.Task[None]] = set()

    async def answer(request: ProbeRequest) -> None:
        result = await probe(request)
        try:
            frame = encode_frame(result)
        except FrameError:
            report = ProbeReport(ok=False, message="the names of its tools do not fit into 1 MiB")
            frame = encode_frame(ProbeResult(probe=request.probe, report=report))
        writer.write(frame)

    while (payload := await read_frame(reader)) is not None:
        task = asyncio.create_task(answer(ProbeRequest.model_validate_json(payload)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def main() -> int:
    """Parse the command line and serve. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="toolbox_dtma.gateway.prober", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the socket to the worker")
    parser.add_argument("--parent", type=int, required=True, help="pid of the worker")
    options = parser.parse_args()
    if not die_with_parent(options.parent):
        return 1
    configure_logging("prober")
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    asyncio.run(serve(socket.socket(fileno=options.fd)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The end of a worker: nobody is refused, what runs may end, and what would never end is cut."""

from __future__ import annotations

import asyncio

from toolbox_dtma.gateway.connection import Server
from toolbox_dtma.gateway.exchanges import Cause, Exchanges
from toolbox_dtma.gateway.listener import Listener

LOOK_SECONDS = 0.05
LAST_SECONDS = 0.5
"""For what was cut to be told so."""


async def drain(
    listener: Listener, server: Server, exchanges: Exchanges, *, seconds: float, patient: asyncio.Event
) -> None:
    """End every connection within `seconds` and a little.

    While `patient` (another worker serves on the same socket) idle connections stay open, since a client's next request
    may be on its way already; its answer then says that it was the last one here.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    listener.stop()
    server.draining = True
    while loop.time() < deadline:
        # Streams never end by themselves; their clients connect again, to another worker.
        exchanges.abort_all(Cause.STOPPING, listening_only=True)
        running = listener.opening or server.busy or exchanges.count
        if not running and not (patient.is_set() and server.open):
            break
        if not patient.is_set():
            server.close_idle()
        await asyncio.sleep(LOOK_SECONDS)
    exchanges.abort_all(Cause.STOPPING)
    await listener.close()
    # Twice at most: for what is being answered, and then for what has to be cut.
    await server.shutdown(LAST_SECONDS)

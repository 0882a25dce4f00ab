"""What DTMA's process with something of its own is started by: the arguments and the stop of the product's `serve`.

It runs in that process, which has the product and the tests on its path, and not the local stack.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path

import structlog

Serve = Callable[[Path, asyncio.Event], Coroutine[None, None, None]]


def main(serve: Serve) -> None:
    """`serve --state-dir …`, stopped by SIGTERM."""
    # As the product: pretty tracebacks take so long that a host seems to be away.
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("serve",))
    parser.add_argument("--state-dir", type=Path, required=True)
    asyncio.run(_until_stopped(serve, parser.parse_args().state_dir))


async def _until_stopped(serve: Serve, state_dir: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(state_dir, stop)

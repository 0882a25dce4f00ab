"""DTMA with shorter delays towards Docker: `python -m support.hosts.brisk_dtma serve --state-dir …`.

An engine that hangs is noticed after seconds instead of a minute. Everything else is the product's.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

import structlog

from toolbox_dtma.engine.api import Engine
from toolbox_dtma.engine.docker import DockerEngine
from toolbox_dtma.engine.timings import Timings
from toolbox_dtma.serve import serve
from toolbox_dtma.state.records import HostRecord

TIMINGS = Timings(request=4.0, resync=2.0, retry_max=4.0, reconnect_max=1.0, stop_grace=2)


def brisk_engine(host: HostRecord, spec_key: bytes) -> Engine:
    """The real engine, with these delays."""
    return DockerEngine(host.host_id, spec_key, Path(host.runtime_dir), host.docker_url, timings=TIMINGS)


async def run(state_dir: Path) -> None:
    """`serve`, stopped by SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(state_dir, stop=stop, make_engine=brisk_engine)


if __name__ == "__main__":
    # As the product: pretty tracebacks take so long that a host seems to be away.
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("serve",))
    parser.add_argument("--state-dir", type=Path, required=True)
    asyncio.run(run(parser.parse_args().state_dir))

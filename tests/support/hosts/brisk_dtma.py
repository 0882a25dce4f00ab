"""DTMA with shorter delays towards Docker: `python -m support.hosts.brisk_dtma serve --state-dir …`.

An engine that hangs is noticed after seconds instead of a minute. Everything else is the product's.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from support.hosts.varied_dtma import main
from toolbox_dtma.engine.api import Engine
from toolbox_dtma.engine.docker import DockerEngine
from toolbox_dtma.engine.timings import Timings
from toolbox_dtma.serve import serve
from toolbox_dtma.state.records import HostRecord

TIMINGS = Timings(request=4.0, resync=2.0, retry_max=4.0, reconnect_max=1.0, stop_grace=2)


def brisk_engine(host: HostRecord, spec_key: bytes) -> Engine:
    """The real engine, with these delays."""
    return DockerEngine(host.host_id, spec_key, Path(host.runtime_dir), host.docker_url, timings=TIMINGS)


async def brisk(state_dir: Path, stop: asyncio.Event) -> None:
    """`serve` with this engine."""
    await serve(state_dir, stop=stop, make_engine=brisk_engine)


if __name__ == "__main__":
    main(brisk)

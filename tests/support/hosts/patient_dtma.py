"""DTMA that gives workers longer to acknowledge: `python -m support.hosts.patient_dtma serve --state-dir …`.

On a busy machine a worker may need more than the product allows it; replacing it shows in status and Events. It
has no session broker; what it does otherwise is the product's.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

import structlog

from toolbox_dtma.serve import serve
from toolbox_dtma.settings import Timings

TIMINGS = Timings(silence=3.0)


async def run(state_dir: Path) -> None:
    """`serve`, stopped by SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(state_dir, stop=stop, timings=TIMINGS)


if __name__ == "__main__":
    # As the product: pretty tracebacks take so long that a host seems to be away.
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("serve",))
    parser.add_argument("--state-dir", type=Path, required=True)
    asyncio.run(run(parser.parse_args().state_dir))

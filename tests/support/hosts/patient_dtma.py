"""DTMA that gives workers longer to acknowledge: `python -m support.hosts.patient_dtma serve --state-dir …`.

On a busy machine a worker may need more than the product allows it; replacing it shows in status and Events. It
has no session broker; what it does otherwise is the product's.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from support.hosts.varied_dtma import main
from toolbox_dtma.serve import serve
from toolbox_dtma.settings import Timings

TIMINGS = Timings(silence=3.0)


async def patient(state_dir: Path, stop: asyncio.Event) -> None:
    """`serve` with this patience."""
    await serve(state_dir, stop=stop, timings=TIMINGS)


if __name__ == "__main__":
    main(patient)

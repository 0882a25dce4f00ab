"""A scripted worker whose probes are real conversations."""

from __future__ import annotations

import asyncio

from support.dtma.worker import ScriptedWorker
from toolbox_dtma.gateway.probe import probe
from toolbox_dtma.link.framing import encode_frame
from toolbox_dtma.link.messages import ProbeRequest


class ProbingWorker(ScriptedWorker):
    """A worker that probes as the real one does."""

    def __init__(self) -> None:
        super().__init__()
        self._probing: set[asyncio.Task[None]] = set()
        self.probes = self._begin

    def _begin(self, request: ProbeRequest) -> None:
        async def run() -> None:
            await self.raw(encode_frame(await probe(request)))

        task = asyncio.create_task(run())
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

"""Runs work that comes in steps between other requests."""

from __future__ import annotations

import asyncio

from toolbox_dtma.gateway.skimming import Steps, T


class Stepper:
    """One step at a time for a whole worker, and never two before all that is ready had its turn."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def run(self, work: Steps[T]) -> T:
        """The result of the work. Raises what it raises."""
        async with self._one:
            while True:
                try:
                    next(work)
                except StopIteration as done:
                    result: T = done.value
                    return result
                await asyncio.sleep(0)

"""Runs work that comes in steps for many sessions at once, a step of each in turn."""

from __future__ import annotations

import asyncio

from toolbox_dtma.gateway.skimming import Steps, T


class Turns:
    """One step before all that is ready has its turn, whoever's it is: a huge document does not delay a large one."""

    def __init__(self) -> None:
        # Those who wait for it get it in the order in which they came.
        self._turn = asyncio.Lock()

    async def run(self, work: Steps[T]) -> T:
        """The result of the work. Raises what it raises."""
        while True:
            async with self._turn:
                try:
                    next(work)
                except StopIteration as done:
                    result: T = done.value
                    return result
                await asyncio.sleep(0)

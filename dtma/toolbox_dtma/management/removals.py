"""Containers on their way out: one task each, that goes on until the engine says it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from toolbox_dtma.engine.api import Engine, EngineUnavailable, Holder
from toolbox_dtma.management.problems import Refused, unexpected
from toolbox_dtma.settings import Timings
from toolbox_dtma.wire import ProblemCode

log = structlog.get_logger("toolbox_dtma.removals")

MAX_DETAIL = 400
"""Characters of what Docker said."""


@dataclass(slots=True)
class _Removal:
    task: asyncio.Task[None]
    volumes_of: Holder | None
    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    """An attempt failed; the next one comes by itself."""
    problem: Refused | None = None


class Removals:
    """At most one removal per instance id. `finished` is awaited when the container is gone; it calls `forget`."""

    def __init__(self, engine: Engine, timings: Timings, finished: Callable[[str], Awaitable[None]]):
        self._engine = engine
        self._timings = timings
        self._finished = finished
        self._running: dict[str, _Removal] = {}

    def is_running(self, instance_id: str) -> bool:
        """Whether a removal of this id is under way."""
        return instance_id in self._running

    def begin(self, instance_id: str, volumes_of: Holder | None) -> None:
        """Start removing, with that holder's volumes; a removal under way is joined, and goes on with the new order."""
        running = self._running.get(instance_id)
        if running is not None:
            running.volumes_of = volumes_of
            running.stuck.clear()
            return
        task = asyncio.create_task(self._remove(instance_id), name=f"remove {instance_id}")
        self._running[instance_id] = _Removal(task, volumes_of)

    async def wait(self, instance_id: str) -> None:
        """Return once it is done. Raises `Refused` (EngineUnavailable, Internal) when it has to go on later."""
        removal = self._running.get(instance_id)
        if removal is None:
            return
        stuck = asyncio.create_task(removal.stuck.wait())
        try:
            await asyncio.wait(
                {removal.task, stuck}, timeout=self._timings.removal_wait, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            stuck.cancel()
        if removal.task.done():
            return
        raise removal.problem or Refused(
            ProblemCode.ENGINE_UNAVAILABLE, "the container is still being removed; the host goes on by itself"
        )

    def forget(self, instance_id: str) -> None:
        """The container is gone: for `finished` to call, in the same breath as it decides what comes next."""
        self._running.pop(instance_id, None)

    async def close(self) -> None:
        """Stop; records on disk let the next start go on."""
        tasks = [removal.task for removal in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _remove(self, instance_id: str) -> None:
        while True:
            try:
                await self._engine.remove(instance_id, volumes_of=self._running[instance_id].volumes_of)
                await self._finished(instance_id)
                return
            except EngineUnavailable as error:
                detail = f"{str(error).strip().rstrip('.')[:MAX_DETAIL]}; the removal goes on by itself"
                self._report(instance_id, Refused(ProblemCode.ENGINE_UNAVAILABLE, detail))
            except Exception as error:
                # Boundary of the removal worker: whatever went wrong, the order to remove stands.
                log.exception("removal failed; will be tried again", instance=instance_id)
                self._report(instance_id, unexpected(error))
            await asyncio.sleep(self._timings.removal_retry)

    def _report(self, instance_id: str, problem: Refused) -> None:
        removal = self._running.get(instance_id)
        if removal is not None:
            removal.problem = problem
            removal.stuck.set()

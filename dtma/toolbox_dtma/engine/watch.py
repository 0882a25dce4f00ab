"""Follows Docker's event stream, and notices when the engine goes away and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

from toolbox_dtma.engine.api import EngineUnavailable
from toolbox_dtma.engine.failures import DockerRefused
from toolbox_dtma.engine.models import DockerEvent
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE, LABEL_SESSION
from toolbox_dtma.engine.world import World

_TELLING = frozenset(
    {"create", "start", "die", "oom", "stop", "kill", "pause", "unpause", "destroy", "rename", "update"}
)
"""Actions after which a container looks different. Not: exec, attach, top, …"""


class Watch:
    """Level-triggered: an event only says whom to look at; (re)connecting says to look at everyone."""

    def __init__(
        self,
        world: World,
        *,
        changed: Callable[[str], None],
        connected: Callable[[], Awaitable[None]],
        lost: Callable[[str], None],
        resync: Callable[[], Awaitable[None]],
    ) -> None:
        self._world = world
        self._changed = changed
        self._connected = connected
        self._lost = lost
        self._resync = resync

    async def run(self) -> None:
        """Watch until cancelled."""
        timings = self._world.timings
        delay = timings.reconnect_first
        away = False
        while True:
            try:
                # Subscribed before looking, so that nothing falls between.
                async with self._world.client.events({LABEL_HOST: self._world.names.host_id}) as events:
                    await self._connected()
                    delay, away = timings.reconnect_first, False
                    await self._until_either_ends(self._follow(events), self._resync_now_and_then())
                reason = "its event stream ended"
            except (EngineUnavailable, DockerRefused) as error:
                reason = str(error)
            if not away:
                self._lost(reason)
                away = True
            await asyncio.sleep(self._world.jittered(delay))
            delay = min(delay * 2, timings.reconnect_max)

    async def _follow(self, events: AsyncIterator[DockerEvent]) -> None:
        async for event in events:
            attributes = event.actor.attributes
            instance, session = attributes.get(LABEL_INSTANCE), attributes.get(LABEL_SESSION)
            # Actions may carry details after a colon.
            action = event.action.partition(":")[0]
            if session:
                self._world.sessions.happened(session, action, attributes)
            elif instance and action in _TELLING:
                self._changed(instance)

    async def _resync_now_and_then(self) -> None:
        """Ends with `EngineUnavailable` when the engine hangs, which a silent event stream doesn't show."""
        while True:
            await asyncio.sleep(self._world.timings.resync)
            await self._resync()

    async def _until_either_ends(self, *work: Coroutine[None, None, None]) -> None:
        tasks = [asyncio.ensure_future(item) for item in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

"""Networks that an instance has left, as after a change of its egress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from toolbox_dtma.engine.failures import DockerRefused
from toolbox_dtma.engine.networks import InstanceNetwork

log = structlog.stdlib.get_logger(__name__)


class Discarder(Protocol):
    """What removes a network."""

    async def discard(self, network: InstanceNetwork) -> None:
        """Raises `DockerRefused` while something is attached, and `EngineUnavailable`."""
        ...


class Spares:
    """Removes them. One that somebody has attached something to is tried again, and is no failure of the server."""

    def __init__(self, networks: Discarder, retry: float, clock: Callable[[], float]) -> None:
        self._networks = networks
        self._retry = retry
        self._clock = clock
        self._not_before = 0.0
        self._told: set[str] = set()

    def due(self, spares: Sequence[InstanceNetwork]) -> bool:
        """Whether one is to be removed now."""
        return bool(spares) and self._clock() >= self._not_before

    def pause(self, spares: Sequence[InstanceNetwork]) -> float | None:
        """How long to wait, where none was removed now; none for ever."""
        if not spares:
            return None
        left = self._not_before - self._clock()
        return left if left > 0 else self._retry

    async def remove(self, spares: Sequence[InstanceNetwork]) -> None:
        """Remove all that the engine lets go. Raises `EngineUnavailable`."""
        for network in spares:
            try:
                await self._networks.discard(network)
            except DockerRefused as refused:
                self._not_before = self._clock() + self._retry
                if network.id not in self._told:
                    self._told.add(network.id)
                    log.warning("an old network cannot be removed", network=network.name, error=refused.message)

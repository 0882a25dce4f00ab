"""What all convergers of a host share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from toolbox_dtma.engine.api import Seen
from toolbox_dtma.engine.client import DockerClient
from toolbox_dtma.engine.firewall import Firewall
from toolbox_dtma.engine.images import Images
from toolbox_dtma.engine.ledger import Ledger
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.engine.networks import Networks
from toolbox_dtma.engine.sessions import SessionContainers
from toolbox_dtma.engine.timings import Timings
from toolbox_dtma.engine.volumes import Volumes

_CONCURRENT_ACTIONS = 8


@dataclass(frozen=True)
class World:
    """One host's engine and its helpers."""

    names: HostNames
    spec_key: bytes
    client: DockerClient
    images: Images
    networks: Networks
    volumes: Volumes
    firewall: Firewall
    sessions: SessionContainers
    ledger: Ledger
    timings: Timings
    clock: Callable[[], float]
    report: Callable[[str, Seen], None]
    rng: random.Random = field(default_factory=random.Random)
    actions: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONCURRENT_ACTIONS))
    """Bounds how many containers are created, started or stopped at once; the engine serialises much anyway."""

    def jittered(self, delay: float) -> float:
        """A delay of half to the whole, so that what failed together does not return together."""
        return delay * (0.5 + self.rng.random() / 2)

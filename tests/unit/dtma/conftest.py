"""A session manager for tests of sessions, and a broker that it talks to."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from support.dtma.managed import Bench
from support.dtma.sessions import ScriptedBroker


@pytest.fixture
async def bench() -> AsyncGenerator[Bench]:
    bench = Bench()
    bench.deploy()
    async with bench.running():
        yield bench
    assert not bench.engine.processes, "a process outlived the manager"


@pytest.fixture
async def broker(bench: Bench) -> AsyncGenerator[ScriptedBroker]:
    async with bench.broker() as broker:
        yield broker

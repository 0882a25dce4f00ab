"""One broker for all tests that do not disturb it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import httpx
import pytest

from support.broker.client import unix_http
from support.broker.programs import Script
from support.broker.world import Broker, running_broker


@pytest.fixture(scope="session")
def broker() -> Generator[Broker]:
    """A broker; every test makes instances of its own."""
    with running_broker() as broker:
        yield broker


@pytest.fixture
async def http(broker: Broker) -> AsyncGenerator[httpx.AsyncClient]:
    """A plain client of its socket."""
    async with unix_http(broker.path) as http:
        yield http


@pytest.fixture
async def script() -> AsyncGenerator[Script]:
    """A program that the test speaks for."""
    script = Script()
    yield script
    await script.close()

"""One gateway with two workers for all tests that do not disturb it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import httpx
import pytest

from support.gateway.held_calls import Held
from support.gateway.mcp_servers import RealServer, ScriptedServer, real_server, scripted_server
from support.gateway.world import World, running_world


@pytest.fixture(scope="session")
def gateway() -> Generator[World]:
    """A gateway over TLS; every test makes instances and connections of its own."""
    with running_world() as world:
        yield world


@pytest.fixture(scope="session")
def everyday() -> Generator[RealServer]:
    """An SDK server that answers with event streams."""
    with real_server() as server:
        yield server


@pytest.fixture(scope="session")
def everyday_json() -> Generator[RealServer]:
    """An SDK server that answers with JSON."""
    with real_server(json_response=True) as server:
        yield server


@pytest.fixture
def script() -> Generator[ScriptedServer]:
    """A server that answers as the test says."""
    with scripted_server() as server:
        yield server


@pytest.fixture
async def http(gateway: World) -> AsyncGenerator[httpx.AsyncClient]:
    """A plain HTTP client that trusts the gateway's CA."""
    async with httpx.AsyncClient(verify=gateway.tls.client_context(), timeout=15, trust_env=False) as client:
        yield client


@pytest.fixture
def held() -> Generator[tuple[ScriptedServer, Held]]:
    """The server and its switch."""
    switch = Held()
    with scripted_server(switch.answer) as script:
        yield script, switch

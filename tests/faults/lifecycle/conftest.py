"""The tests here share a namespace, each with names of its own."""

from __future__ import annotations

import socket
from collections.abc import Generator

import pytest

from support.system.space import Space, opened
from support.system.world import World


@pytest.fixture(scope="package")
def space(world: World) -> Generator[Space]:
    """The package's namespace; see `support.system.space.opened`."""
    with opened(world, objects_first=True) as found:
        yield found


@pytest.fixture(scope="package")
def endless_pull() -> Generator[str]:
    """An image whose registry takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}/mcp-slow:1"

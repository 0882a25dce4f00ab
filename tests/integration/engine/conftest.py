"""One fresh hostId per test on the machine's Docker engine."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Generator
from ipaddress import ip_address
from pathlib import Path

import pytest

from localstack.docker import Engine
from support.engine.far_network import FarNetwork, far_network
from support.engine.host import FAST, EngineHost
from support.engine.images import busybox_image


@pytest.fixture(scope="session")
def tiny_image(docker_engine: Engine) -> str:
    """Reference of the busybox image, in the engine."""
    return busybox_image()


@pytest.fixture
async def host(tiny_image: str, tmp_path: Path) -> AsyncGenerator[EngineHost]:
    """A running engine; everything it made is removed at the end."""
    host = EngineHost(tmp_path, tiny_image)
    host.start()
    try:
        yield host
    finally:
        await host.clean()


@pytest.fixture
def instance() -> str:
    """A fresh instance id."""
    return str(uuid.uuid4())


@pytest.fixture(scope="module")
def far() -> Generator[FarNetwork]:
    """The world beyond the host."""
    with far_network() as network:
        yield network


@pytest.fixture
async def resolving(tiny_image: str, tmp_path: Path, far: FarNetwork) -> AsyncGenerator[EngineHost]:
    """A host whose resolver is the far private address."""
    host = EngineHost(tmp_path, tiny_image, FAST, resolvers=lambda: (ip_address(far.private),))
    host.start()
    try:
        yield host
    finally:
        await host.clean()

"""One host for all tests of a session; each makes instances of its own."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from localstack.docker import Engine
from localstack.processes import Supervisor
from support.hosts.stdio_host import StdioHost


@pytest.fixture(scope="session")
def stdio_host(docker_engine: Engine, supervisor: Supervisor, state_folder: Path) -> Generator[StdioHost]:
    """DTMA, broker and gateway on the machine's Docker."""
    del docker_engine
    host = StdioHost.started(supervisor, state_folder / "stdio-host")
    yield host
    host.close()


@pytest.fixture
def instance(stdio_host: StdioHost) -> Generator[str]:
    """A ready stdio server."""
    name = str(uuid.uuid4())
    stdio_host.deploy(name)
    stdio_host.await_phase(name, "Ready")
    yield name
    stdio_host.remove(name)
    assert not stdio_host.sessions(name)

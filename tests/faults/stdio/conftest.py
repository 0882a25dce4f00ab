"""A host of its own for what is done to stdio servers, without a cluster: operator and record have no part in it."""

from __future__ import annotations

import uuid
from collections.abc import Generator

import pytest

from localstack.docker import Engine
from localstack.processes import Supervisor
from support.hosts import prying_server
from support.hosts.far_host import FarHost, Variation
from support.hosts.stdio_host import StdioHost


@pytest.fixture(scope="session")
def far(supervisor: Supervisor, docker_engine: Engine) -> Generator[FarHost]:
    """A host whose every part can be killed, the engine too."""
    del docker_engine
    host = FarHost(supervisor, Variation(broker=True))
    host.start()
    yield host
    host.close()


@pytest.fixture(scope="session")
def stdio_host(far: FarHost) -> Generator[StdioHost]:
    """The same, as it is driven over its API."""
    host = StdioHost(far.host, far.engine.docker)
    yield host
    host.close()


@pytest.fixture(scope="session")
def instance(stdio_host: StdioHost) -> Generator[str]:
    """A ready stdio server."""
    name = str(uuid.uuid4())
    limits = {"memoryBytes": 32 * 1024 * 1024, "cpuMillis": 500, "pids": 32}
    sessions = {"maxSessions": 8, "idleSeconds": 600.0}
    stdio_host.deploy(name, command=list(prying_server.COMMAND), limits=limits, sessions=sessions)
    stdio_host.await_phase(name, "Ready")
    yield name
    stdio_host.remove(name)
    assert not stdio_host.sessions(name)

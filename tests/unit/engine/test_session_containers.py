"""Sessions that are ended while Docker is still making their containers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Mapping
from ipaddress import IPv4Network
from typing import Any, cast

import pytest

from support.async_poll import until
from support.engine.objects import desired_instance
from toolbox_dtma.engine.api import NotDeployed, Wanted
from toolbox_dtma.engine.client import DockerClient
from toolbox_dtma.engine.deployment import Deployment
from toolbox_dtma.engine.firewall import Firewall
from toolbox_dtma.engine.models import ContainerSummary
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.engine.networks import InstanceNetwork
from toolbox_dtma.engine.sessions import SessionContainers
from toolbox_dtma.engine.timings import Timings
from toolbox_dtma.engine.volumes import Volumes
from toolbox_dtma.wire import Egress

NAMES = HostNames("7c5e4d6a-0f3b-4a53-9a43-0c1f9a5f8f11")
NETWORK = InstanceNetwork("net-1", "mtb-net", IPv4Network("10.200.0.0/28"), Egress.INTERNET)
DESIRED = desired_instance(transport="stdio", port=None, path=None, sessions={"max_sessions": 10})


def deployment(instance: str) -> Deployment:
    return Deployment("d", Wanted(instance, "cluster", DESIRED), "sha256:aa", NETWORK)


class SlowDocker(DockerClient):
    """Makes a container only when it is let."""

    def __init__(self) -> None:
        super().__init__(None, Timings())
        self.asked: list[str] = []
        self.there: set[str] = set()
        self.go_on = asyncio.Event()

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        self.asked.append(name)
        await self.go_on.wait()
        self.there.add(name)
        return name

    async def attach(self, container_id: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    async def start(self, container_id: str) -> None:
        pass

    async def kill(self, container_id: str) -> None:
        pass

    async def remove(self, container_id: str) -> None:
        self.there.discard(container_id)

    async def containers(self, labels: Mapping[str, str]) -> tuple[ContainerSummary, ...]:
        return ()


class OpenFirewall:
    async def ensure(self) -> None:
        """There is nothing to reach."""


@pytest.fixture
async def docker() -> AsyncGenerator[SlowDocker]:
    docker = SlowDocker()
    yield docker
    docker.go_on.set()


@pytest.fixture
def sessions(docker: SlowDocker) -> SessionContainers:
    return SessionContainers(docker, NAMES, cast("Firewall", OpenFirewall()), Volumes(docker, NAMES), b"k" * 32)


async def opening(sessions: SessionContainers, docker: SlowDocker, name: str, instance: str) -> asyncio.Task[Any]:
    """A session whose container Docker is about to make."""
    before = len(docker.asked)
    task = asyncio.create_task(sessions.open(name, deployment(instance)))
    await until("asked for", lambda: len(docker.asked), lambda asked: asked > before)
    return task


async def test_an_instance_is_cleared_only_when_what_is_being_made_is_gone(
    sessions: SessionContainers, docker: SlowDocker
) -> None:
    session = await opening(sessions, docker, "s-1", "i-1")
    clearing = asyncio.create_task(sessions.clear("i-1"))
    await asyncio.wait({clearing}, timeout=0.1)
    assert not clearing.done(), "its container may appear at any moment"
    docker.go_on.set()
    await asyncio.wait_for(clearing, 10)
    assert docker.there == set()
    with pytest.raises(NotDeployed):
        await session


async def test_a_clearing_waits_for_no_other_instance_and_for_nothing_that_only_waits_for_its_turn(
    sessions: SessionContainers, docker: SlowDocker
) -> None:
    others = [await opening(sessions, docker, f"s-{n}", "i-2") for n in range(4)]
    queued = asyncio.create_task(sessions.open("s-9", deployment("i-1")))
    await asyncio.sleep(0)
    await asyncio.wait_for(sessions.clear("i-1"), 10)
    docker.go_on.set()
    for stream in await asyncio.gather(*others):
        stream.close()
    with pytest.raises(NotDeployed):
        await queued
    assert len(docker.asked) == len(docker.there) == 4


async def test_a_clearing_that_is_given_up_ends_nothing_half_done(
    sessions: SessionContainers, docker: SlowDocker
) -> None:
    session = await opening(sessions, docker, "s-1", "i-1")
    clearing = asyncio.create_task(sessions.clear("i-1"))
    await asyncio.sleep(0)
    clearing.cancel()
    await asyncio.wait({clearing})
    docker.go_on.set()
    with pytest.raises(NotDeployed):
        await session
    await asyncio.wait_for(sessions.close(), 10)
    assert docker.there == set()

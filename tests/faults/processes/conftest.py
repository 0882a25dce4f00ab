"""A second host with two gateway workers for the tests of this folder, so that no other test misses its processes."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from localstack.host import Host, Settings
from localstack.quickstart import Target
from localstack.stack import LocalStack
from support.system.space import SYSTEM, Space, opened, toolbox_documents
from support.system.world import World

RIG = Target("Toolbox", SYSTEM, "tbx-rig")


@pytest.fixture(scope="package")
def rig(world: World, state_folder: Path) -> Generator[World]:
    """The shared system as seen from a host of its own, whose Toolbox is `tbx-rig`; that goes at the end."""
    shared = world.stack
    host = Host(shared.supervisor, state_folder / "rig", Settings(name=RIG.name, gateway_workers=2))
    host.start()
    shared.parts.cluster.apply(toolbox_documents(host.manifests, leaseDuration="90s"))
    found = World(LocalStack(shared.supervisor, shared.parts, host, shared.operator, shared.images))
    found.await_condition(RIG, "Ready", "True")
    yield found
    kubectl = shared.parts.cluster.kubectl
    kubectl("delete", RIG.resource, "-n", RIG.namespace, "--timeout=60s", seconds=75)
    for child in (host.gateway, host.dtma):
        if child is not None:
            child.stop()


@pytest.fixture(scope="module")
def space(rig: World) -> Generator[Space]:
    """One namespace for all tests of a module, on the rig."""
    with opened(rig, objects_first=True) as found:
        yield found


@pytest.fixture(autouse=True)
def whole(rig: World) -> Generator[None]:
    """Whatever a test ended, the next one finds it running."""
    yield
    stack = rig.stack
    if stack.operator.child is None or not stack.operator.child.running():
        stack.operator.start()
    if stack.host.dtma is None or not stack.host.dtma.running():
        stack.host.start_dtma()
    if stack.host.gateway is None or not stack.host.gateway.running():
        stack.host.start_gateway()

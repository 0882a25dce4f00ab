"""Bad input is tried side by side: all tests here share a namespace, each with names of its own."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from localstack.quickstart import Target
from support.system.server_troubles import Applied, apply_all
from support.system.space import Space, opened
from support.system.world import World


@pytest.fixture(scope="package")
def space(world: World) -> Generator[Space]:
    """The package's namespace; see `support.system.space.opened`."""
    with opened(world, objects_first=True) as found:
        yield found


@pytest.fixture(scope="package")
def elsewhere(world: World) -> Generator[Space]:
    """Another namespace."""
    with opened(world, objects_first=True) as found:
        yield found


@pytest.fixture(scope="package")
def good_server(space: Space) -> Target:
    """A Ready server, shared with its namespace only."""
    server = space.server("good")
    space.world.await_condition(server, "Ready", "True")
    return server


@pytest.fixture(scope="package", autouse=True)
def troubled(space: Space) -> Applied:
    """Servers in trouble, applied before the first test of the package: some get a minute until they are in error."""
    return apply_all(space)

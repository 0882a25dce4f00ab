"""The record behind a proxy, with copies of its database and an administrator who bypasses the operator."""

from __future__ import annotations

import secrets
from collections.abc import Generator

import pytest

from support.proxies.background_proxy import BackgroundProxy
from support.system.record_database import RecordDatabase
from support.system.space import Space, opened
from support.system.world import World


@pytest.fixture(scope="package")
def record(world: World, record_proxy: BackgroundProxy) -> RecordDatabase:
    """The shared system's record."""
    return RecordDatabase(world, record_proxy)


@pytest.fixture
def spare(record: RecordDatabase) -> Generator[str]:
    """A name for a copy of the database, dropped at the end."""
    name = f"spare_{secrets.token_hex(4)}"
    yield name
    record.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(autouse=True)
def whole(world: World) -> Generator[None]:
    """Whatever a test ended, the next one finds it running."""
    yield
    if world.stack.operator.child is None or not world.stack.operator.child.running():
        world.stack.operator.start()
    if world.stack.host.dtma is None or not world.stack.host.dtma.running():
        world.stack.host.start_dtma()


@pytest.fixture(scope="module")
def space(world: World) -> Generator[Space]:
    """One namespace for all tests of a module."""
    with opened(world, objects_first=True) as found:
        yield found

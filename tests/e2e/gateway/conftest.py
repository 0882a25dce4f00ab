"""A gateway without a cluster around it, for software of others at both of its ends."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from support.gateway.world import World, running_world


@pytest.fixture(scope="session")
def gateway() -> Generator[World]:
    """A gateway with two workers over TLS; every test makes instances and connections of its own."""
    with running_world() as world:
        yield world

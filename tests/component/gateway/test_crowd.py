"""Hundreds of sessions of stdio servers at a time, over all workers and one broker: nobody hears what is not theirs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Generator

import aiohttp
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from support.broker.crowd import SECONDS, Visitor, gathered
from support.broker.world import Broker, running_broker
from support.fuzz import examples
from support.gateway.world import World, restricted
from toolbox_dtma.link.messages import Surface

pytestmark = pytest.mark.component

INSTANCES, CONNECTIONS, VISITORS = 3, 4, 10
"""Each of the next within each of the one before."""


@pytest.fixture(scope="module")
def broker() -> Generator[Broker]:
    """A broker of the gateway's user."""
    with running_broker(unprivileged=True) as broker:
        yield broker


async def _come_and_go(gateway: World, broker: Broker, seed: int) -> None:
    # Of half of them answers pass unseen, of the others they are read and filtered.
    exposes = itertools.cycle((restricted("*"), restricted("*", deny=("other",))))
    async with (
        gathered(seed) as crowd,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=gateway.tls.client_context(), limit=0),
            timeout=aiohttp.ClientTimeout(total=SECONDS),
            # Lines are as long as the longest message.
            read_bufsize=1 << 17,
        ) as http,
        asyncio.TaskGroup() as visits,
    ):
        visitors: list[Visitor] = []
        for _ in range(INSTANCES):
            instance = gateway.bridged(broker.dtma.instance(crowd), broker.path, surface=Surface(tools=("work",)))
            connections = [gateway.connect(instance, expose=next(exposes)) for _ in range(CONNECTIONS)]
            visitors += [Visitor(http, each, number, seed) for each in connections for number in range(VISITORS)]
        for visitor in visitors:
            visits.create_task(visitor.visit())
    pairs = {member.name: member.client for member in crowd.members}
    assert pairs == {visitor.process: visitor.name for visitor in visitors}, "a process each"
    assert len(pairs) == INSTANCES * CONNECTIONS * VISITORS


@given(seed=st.integers(0, 1 << 32))
# A smaller number is no simpler case.
@settings(examples(2), phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_every_byte_that_anybody_hears_is_of_their_own_session(gateway: World, broker: Broker, seed: int) -> None:
    asyncio.run(_come_and_go(gateway, broker, seed))

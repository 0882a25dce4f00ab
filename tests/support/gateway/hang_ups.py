"""Clients that hang up while a server works on their calls."""

from __future__ import annotations

import asyncio
from typing import Any

from support.async_poll import until
from support.gateway.world import World
from support.tcp import End, State, ends


async def hang_up(world: World, *requests: asyncio.Task[Any]) -> None:
    """Give requests up, which closes their connections, and wait until the gateway has seen it.

    A server that answers before the gateway looked finds a client that still waits, as far as anybody can tell.
    """
    for each in requests:
        each.cancel()
    await asyncio.gather(*requests, return_exceptions=True)

    def unseen() -> list[End]:
        return [end for end in ends() if end.port == world.port and end.state is State.CLOSE_WAIT]

    await until("the gateway has closed its side", unseen, lambda found: not found)

"""`poll.until` for tests that share their event loop with what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def until(what: str, look: Callable[[], T], good: Callable[[T], bool] = bool, *, seconds: float = 10.0) -> T:
    """The first value of `look` that is `good`; fails after `seconds` with the last one seen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        seen = look()
        if good(seen):
            return seen
        if loop.time() >= deadline:
            raise AssertionError(f"not {what} after {seconds:.0f}s; last seen: {seen!r}")
        await asyncio.sleep(0.02)

"""A deadline that holds even against a driver that takes its time to give up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Coroutine[Any, Any, T], *, grace: float = 1.0) -> T:
    """The result of `work`; raises TimeoutError after `seconds`, and ends it also when the caller is cancelled.

    psycopg, cancelled once, asks the server to stop the query and waits up to ten seconds for it to do so. That is
    right for a server that is only slow. One that says nothing within `grace` seconds is cancelled a second time,
    upon which psycopg closes the connection at once.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise TimeoutError(f"no answer from PostgreSQL within {seconds:g}s")
        return task.result()
    finally:
        for patience in (grace, None):
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=patience)
        if not task.cancelled():
            # Looked at, so that asyncio does not report what nobody waits for any more.
            task.exception()

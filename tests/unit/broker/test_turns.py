"""Work in steps, of several sessions."""

from __future__ import annotations

import asyncio

import pytest

from toolbox_dtma.broker.turns import Turns
from toolbox_dtma.gateway.skimming import Steps


async def test_a_short_work_ends_while_a_long_one_goes_on_and_others_have_their_turn() -> None:
    turns = Turns()
    taken: list[str] = []

    def work(name: str, steps: int) -> Steps[str]:
        for _ in range(steps):
            taken.append(name)
            yield
        return name

    async def other() -> None:
        for _ in range(3):
            taken.append("other")
            await asyncio.sleep(0)

    long = asyncio.ensure_future(turns.run(work("long", 1000)))
    await asyncio.sleep(0)
    short = asyncio.ensure_future(turns.run(work("short", 3)))
    others = asyncio.ensure_future(other())
    assert await short == "short"
    assert not long.done() and taken.count("long") <= 6
    assert others.done()
    assert await long == "long"


async def test_what_a_work_raises_is_raised_and_the_next_has_its_turn() -> None:
    turns = Turns()

    def bad() -> Steps[None]:
        yield
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await turns.run(bad())
    cancelled = asyncio.ensure_future(turns.run(iter_for_ever()))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    with pytest.raises(ValueError, match="no"):
        await turns.run(bad())


def iter_for_ever() -> Steps[None]:
    """Work without end."""
    while True:
        yield

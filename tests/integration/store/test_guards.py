from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from support.record.rows import CLUSTER, World, new_id, row_of
from toolbox_operator.store.api import InstanceRow
from toolbox_operator.store.apply import write_changes
from toolbox_operator.store.connect import engine_for
from toolbox_operator.store.decide import Fence
from toolbox_operator.store.migrate import migrate
from toolbox_operator.store.pending import Pending
from toolbox_operator.store.records import records_of

pytestmark = pytest.mark.integration

NOW = datetime(2026, 1, 2, tzinfo=UTC)
on_one_database = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
generations = st.integers(1, 6)
observations = st.tuples(st.integers(1, 3), st.integers(1, 5))
submits = st.lists(st.tuples(generations, observations), min_size=1, max_size=8)


@pytest.fixture
async def engine(postgres: str) -> AsyncGenerator[AsyncEngine]:
    engine = engine_for(postgres, 5)
    async with engine.begin() as connection:
        await migrate(connection)
    yield engine
    await engine.dispose()


async def write(engine: AsyncEngine, rows: list[InstanceRow], epoch: int) -> None:
    """As one process would that lived just long enough for one batch."""
    pending = Pending(max_events=1)
    for row in rows:
        pending.submit(records_of(row, CLUSTER), NOW)
    async with engine.begin() as connection:
        await write_changes(connection, pending.batch(100), Fence(CLUSTER, epoch, NOW))


def instance(world: World, generation: int, seen: tuple[int, int]) -> InstanceRow:
    """Spec columns that tell their generation, observed ones that tell their observation."""
    return world.instance(generation, seen, image=f"image:{generation}", tools=[f"{seen[0]}.{seen[1]}"])


@on_one_database
@given(batches=st.lists(submits, min_size=1, max_size=4))
async def test_in_any_order_the_newest_spec_and_the_newest_observation_win(
    postgres: str, engine: AsyncEngine, batches: list[list[tuple[int, tuple[int, int]]]]
) -> None:
    world = World(namespace=new_id())
    for batch in batches:
        await write(engine, [instance(world, generation, seen) for generation, seen in batch], epoch=1)
    row = await row_of(postgres, "account_tool_instances", world.instance_id)
    generation = max(generation for batch in batches for generation, _ in batch)
    boot_id, seq = max(seen for batch in batches for _, seen in batch)
    assert (row["spec_generation"], row["image"]) == (generation, f"image:{generation}")
    assert (row["boot_id"], row["observed_seq"]) == (boot_id, seq)
    assert row["tools"] == [{"name": f"{boot_id}.{seq}", "description": ""}]


@on_one_database
@given(writes=st.lists(st.tuples(st.integers(1, 4), generations, observations), min_size=1, max_size=8))
async def test_in_any_order_only_writes_of_the_highest_epoch_so_far_count(
    postgres: str, engine: AsyncEngine, writes: list[tuple[int, int, tuple[int, int]]]
) -> None:
    world = World(namespace=new_id())
    highest = 0
    counted: list[tuple[int, tuple[int, int]]] = []
    for epoch, generation, seen in writes:
        await write(engine, [instance(world, generation, seen)], epoch)
        if epoch >= highest:
            highest = epoch
            counted.append((generation, seen))
    row = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert row["epoch"] == highest
    assert row["spec_generation"] == max(generation for generation, _ in counted)
    assert (row["boot_id"], row["observed_seq"]) == max(seen for _, seen in counted)


async def test_another_host_counts_its_observations_anew(postgres: str, engine: AsyncEngine) -> None:
    world = World()
    await write(engine, [instance(world, 1, (9, 90))], epoch=1)
    reinstalled = dataclasses.replace(
        instance(world, 1, (1, 1)), toolbox=dataclasses.replace(world.toolbox(), id=new_id(), name="tbx-1")
    )
    await write(engine, [reinstalled], epoch=1)
    row = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (row["boot_id"], row["tools"][0]["name"]) == (1, "1.1")

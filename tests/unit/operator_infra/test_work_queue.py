"""Waiting for keys, back-off and closing."""

from __future__ import annotations

import asyncio
import random

import pytest

from support.reconcilers.fakes import ManualClock
from toolbox_operator.api.meta import Key
from toolbox_operator.reconcile.queue import WorkQueue
from toolbox_operator.runtime import SystemClock

A, B = Key("ns", "a"), Key("ns", "b")


async def test_a_waiting_worker_gets_a_key_that_is_added() -> None:
    queue = WorkQueue(SystemClock())
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(A)
    assert await asyncio.wait_for(worker, 1) == A


async def test_a_waiting_worker_gets_a_key_when_its_delay_is_over() -> None:
    queue = WorkQueue(SystemClock())
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after(A, 0.02)
    assert await asyncio.wait_for(worker, 1) == A


async def test_keys_that_come_due_at_the_same_time_wake_a_worker_each() -> None:
    queue = WorkQueue(SystemClock())
    workers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add_after(A, 0.02)
    queue.add_after(B, 0.02)
    assert set(await asyncio.wait_for(asyncio.gather(*workers), 1)) == {A, B}


async def test_a_wake_up_of_a_worker_that_is_cancelled_goes_to_another() -> None:
    queue = WorkQueue(SystemClock())
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(A)
    first.cancel()
    assert await asyncio.wait_for(second, 1) == A


async def test_closing_sends_waiting_workers_home_and_hands_out_nothing_more() -> None:
    queue = WorkQueue(SystemClock())
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.close()
    assert await asyncio.wait_for(worker, 1) is None
    queue.add(A)
    assert await asyncio.wait_for(queue.get(), 1) is None


@pytest.mark.parametrize("seed", range(5))
async def test_the_back_off_doubles_is_jittered_and_never_exceeds_its_bound(seed: int) -> None:
    queue = WorkQueue(ManualClock(), backoff_first=1.0, backoff_max=30.0, rng=random.Random(seed))
    delays = [queue.retry(A) for _ in range(40)]
    for step, delay in enumerate(delays):
        ceiling = min(30.0, 2.0**step)
        assert ceiling / 2 <= delay <= ceiling
    assert len(set(delays[6:])) > 10, "no jitter"


async def test_success_starts_the_back_off_over() -> None:
    queue = WorkQueue(ManualClock(), backoff_first=1.0, backoff_max=30.0)
    for _ in range(10):
        queue.retry(A)
    queue.forget(A)
    assert queue.retry(A) <= 1.0


async def test_a_server_that_names_a_delay_is_not_asked_sooner() -> None:
    queue = WorkQueue(ManualClock(), backoff_first=1.0, backoff_max=30.0)
    assert queue.retry(A, at_least=12.0) == 12.0

"""What becomes of a key, by how its reconcile ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import pytest

from support.async_poll import until
from support.reconcilers.fakes import Leading
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.kube.api import Conflict, KubeError
from toolbox_operator.metrics import Metrics
from toolbox_operator.reconcile.controller import Controller
from toolbox_operator.reconcile.errors import Stalled, Waiting
from toolbox_operator.reconcile.queue import WorkQueue
from toolbox_operator.runtime import Fenced, Outcome, SystemClock

A, B = Key("ns", "a"), Key("ns", "b")


@dataclass
class Scripted:
    """A reconciler that does, for each run of a key, what the script says."""

    kind: Kind = Kind.TOOLBOX
    script: Callable[[Key, int], Outcome | Exception] = field(default=lambda key, run: Outcome())
    runs: dict[Key, int] = field(default_factory=dict[Key, int])
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    together: int = 0
    most_together: int = 0
    beside_itself: bool = False
    active: set[Key] = field(default_factory=set[Key])

    def __post_init__(self) -> None:
        self.gate.set()

    async def reconcile(self, key: Key) -> Outcome:
        self.beside_itself |= key in self.active
        self.active.add(key)
        self.most_together = max(self.most_together, len(self.active))
        run = self.runs[key] = self.runs.get(key, 0) + 1
        try:
            await self.gate.wait()
            result = self.script(key, run)
            if isinstance(result, Exception):
                raise result
            return result
        finally:
            self.active.discard(key)


@dataclass
class Bench:
    """A controller at work."""

    reconciler: Scripted
    queue: WorkQueue
    metrics: Metrics
    leading: Leading
    controller: Controller
    task: asyncio.Task[None]

    def outcomes(self, outcome: str) -> float:
        labels = {"kind": "Toolbox", "outcome": outcome}
        return self.metrics.registry.get_sample_value("magic_toolbox_reconcile_seconds_count", labels) or 0.0


@pytest.fixture
async def bench() -> AsyncGenerator[Bench]:
    reconciler, metrics, leading = Scripted(), Metrics(), Leading()
    queue = WorkQueue(SystemClock(), backoff_first=0.02, backoff_max=0.1)
    controller = Controller(
        reconciler, queue, workers=2, clock=SystemClock(), metrics=metrics, leadership=leading, deadline=0.5
    )
    task = asyncio.create_task(controller.run())
    yield Bench(reconciler, queue, metrics, leading, controller, task)
    reconciler.gate.set()
    queue.close()
    await asyncio.wait_for(task, 5)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RuntimeError("a defect"), "error"),
        (KubeError(500, "broken"), "kube_error"),
        (Waiting("HostUnreachable", "away"), "waiting"),
        (Waiting("SecretNotFound", "not there", after=0.02), "waiting"),
        (Conflict(409, "moved on"), "conflict"),
        (Fenced("another leader is ahead at a host"), "fenced"),
    ],
)
async def test_whatever_may_heal_is_tried_again(bench: Bench, error: Exception, outcome: str) -> None:
    bench.reconciler.script = lambda key, run: error if run < 3 else Outcome()
    bench.queue.add(A)
    await until("healed", lambda: bench.outcomes("ok"))
    assert bench.outcomes(outcome) == 2


async def test_a_stalled_object_is_left_alone_until_something_happens_to_it(bench: Bench) -> None:
    bench.reconciler.script = lambda key, run: Stalled("SpecInvalid", "edit it")
    bench.queue.add(A)
    await until("stalled", lambda: bench.outcomes("stalled"))
    assert (len(bench.queue), bench.queue.delayed) == (0, 0)
    bench.queue.add(A)
    await until("tried again", lambda: bench.outcomes("stalled") == 2)


async def test_a_process_that_does_not_lead_any_more_drops_the_key(bench: Bench) -> None:
    bench.leading.held = False
    bench.reconciler.script = lambda key, run: Fenced("lost")
    bench.queue.add(A)
    await until("fenced", lambda: bench.outcomes("fenced"))
    assert (len(bench.queue), bench.queue.delayed) == (0, 0)


async def test_an_outcome_may_ask_to_come_back(bench: Bench) -> None:
    bench.reconciler.script = lambda key, run: Outcome(requeue_after=0.02) if run == 1 else Outcome()
    bench.queue.add(A)
    await until("run twice", lambda: bench.reconciler.runs.get(A) == 2)


async def test_a_reconcile_that_hangs_is_ended_and_tried_again(bench: Bench) -> None:
    bench.reconciler.gate.clear()
    bench.queue.add(A)
    await until("timed out", lambda: bench.outcomes("timeout"))
    bench.reconciler.gate.set()
    await until("healed", lambda: bench.outcomes("ok"))


async def test_one_key_that_hangs_does_not_hold_up_another(bench: Bench) -> None:
    bench.reconciler.gate.clear()
    bench.queue.add(A)
    bench.queue.add(B)
    await until("both under way", lambda: bench.reconciler.most_together == 2)


async def test_a_storm_of_events_on_one_key_never_runs_it_beside_itself(bench: Bench) -> None:
    for _ in range(50):
        bench.queue.add(A)
        await asyncio.sleep(0.001)
    await until("settled", lambda: len(bench.queue) == 0 and not bench.reconciler.active)
    assert not bench.reconciler.beside_itself


async def test_an_event_cuts_a_back_off_short(bench: Bench) -> None:
    bench.reconciler.script = lambda key, run: Waiting("X", "x", after=60.0) if run == 1 else Outcome()
    bench.queue.add(A)
    await until("waiting", lambda: bench.outcomes("waiting"))
    bench.queue.add(A)
    await until("run at once", lambda: bench.outcomes("ok"))


async def test_closing_lets_what_runs_end_and_starts_nothing_more(bench: Bench) -> None:
    bench.reconciler.gate.clear()
    bench.queue.add(A)
    await until("under way", lambda: bench.reconciler.active)
    bench.queue.close()
    bench.queue.add(B)
    bench.reconciler.gate.set()
    await asyncio.wait_for(bench.task, 5)
    assert bench.reconciler.runs == {A: 1}


async def test_the_longest_reconcile_can_be_seen_from_outside(bench: Bench) -> None:
    assert bench.controller.oldest() == 0.0
    bench.reconciler.gate.clear()
    bench.queue.add(A)
    await until("seen", lambda: bench.controller.oldest() > 0.05)

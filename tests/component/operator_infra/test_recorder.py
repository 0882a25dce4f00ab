"""Events: bounded, counted, and never in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest

from support.async_poll import until
from support.reconcilers.fake_kube import FakeKube, failure
from support.reconcilers.fakes import Leading, ManualClock, body_of
from toolbox_operator.api.meta import Kind
from toolbox_operator.kube.client import KubeClient
from toolbox_operator.kube.recorder import BURST, MAX_NOTE, MAX_QUEUE, Recorder
from toolbox_operator.kube.rest import KubeRest

BODY = body_of(Kind.TOOLBOX, "t", 5)


@dataclass
class Bench:
    recorder: Recorder
    fake: FakeKube
    leading: Leading
    dropped: list[None]
    task: asyncio.Task[None]

    def say(self, note: str = "It works.") -> None:
        self.recorder.record(BODY, "Normal", "Ready", note, "Reconcile")

    def events(self) -> list[dict[str, object]]:
        return list(self.fake.objects.values())


@pytest.fixture
async def bench(rest: KubeRest, fake: FakeKube) -> AsyncGenerator[Bench]:
    leading, dropped = Leading(), list[None]()
    recorder = Recorder(
        KubeClient(rest, leading), identity="me", clock=ManualClock(), dropped=lambda: dropped.append(None)
    )
    bench = Bench(recorder, fake, leading, dropped, asyncio.create_task(recorder.run()))
    yield bench
    bench.task.cancel()


async def test_an_event_says_who_did_what_to_which_object(bench: Bench) -> None:
    bench.say()
    await bench.recorder.flush(5)
    (event,) = bench.events()
    assert event["regarding"] == {
        "apiVersion": "magictoolbox.dev/v1alpha1",
        "kind": "Toolbox",
        "namespace": "ns",
        "name": "t",
        "uid": "uid-t",
        "resourceVersion": "5",
    }
    assert (event["type"], event["reason"], event["action"], event["note"]) == (
        "Normal",
        "Ready",
        "Reconcile",
        "It works.",
    )
    assert "series" not in event


async def test_repeats_become_one_series_whether_they_waited_or_not(bench: Bench) -> None:
    bench.say()
    bench.say()
    await bench.recorder.flush(5)
    bench.say()
    await bench.recorder.flush(5)
    (event,) = bench.events()
    assert event["series"] == {"count": 3, "lastObservedTime": "2026-01-01T00:16:40.000000Z"}


async def test_another_note_is_another_event(bench: Bench) -> None:
    bench.say("one")
    bench.say("two")
    await bench.recorder.flush(5)
    assert len(bench.events()) == 2


async def test_too_many_are_dropped_and_counted(bench: Bench) -> None:
    for number in range(MAX_QUEUE + 7):
        bench.say(f"note {number}")
    assert len(bench.dropped) == 7


async def test_a_refusal_is_counted_and_the_next_one_is_written(bench: Bench) -> None:
    refusals = iter([failure(403, "Forbidden", "the namespace is being terminated")])
    bench.fake.fault = lambda method, path: next(refusals, None)
    bench.say("one")
    bench.say("two")
    await bench.recorder.flush(5)
    assert (len(bench.dropped), len(bench.events())) == (1, 1)


async def test_nothing_is_written_without_leadership_and_nothing_is_raised(bench: Bench) -> None:
    bench.leading.held = False
    bench.say()
    await bench.recorder.flush(5)
    assert (len(bench.dropped), bench.fake.writes()) == (1, [])


async def test_a_long_note_is_cut_to_what_the_api_takes(bench: Bench) -> None:
    bench.say("ü" * MAX_NOTE)
    await bench.recorder.flush(5)
    (event,) = bench.events()
    assert len(str(event["note"]).encode()) <= MAX_NOTE


async def test_after_a_burst_events_are_rationed(bench: Bench) -> None:
    for number in range(BURST + 30):
        bench.say(f"note {number}")
    await until("the burst written", lambda: len(bench.events()), lambda count: count >= BURST)
    await asyncio.sleep(0.25)
    assert BURST <= len(bench.events()) <= BURST + 5
    await bench.recorder.flush(5)
    assert len(bench.events()) == BURST + 30, "a stop does not wait for the ration"

"""Counting across columns: never more than the limit, never less than what surely fits, truthful waits."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from bisect import bisect_right
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolbox_dtma.gateway.counts import (
    PROBES,
    ROWS,
    WINDOW,
    Counts,
    NoRoom,
    SharedMemory,
    TooMany,
    TooManyRunning,
    TooManyThisMinute,
    Wanted,
    forget_running,
)

COLUMNS = 3


class Clock:
    """A clock that stands still until told otherwise."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


class Host:
    """The memory of one gateway, and a worker's end for every column, all in this process."""

    def __init__(self, columns: int = COLUMNS):
        self.shared = SharedMemory.make(columns)
        self.words = self.shared.map()
        self.clock = Clock()
        self.workers = [self.worker(column) for column in range(columns)]

    def worker(self, column: int) -> Counts:
        """A new process's end."""
        return Counts(self.words, column, fence=self.shared.pass_fence, monotonic=self.clock)

    def close(self) -> None:
        """Give the descriptors back."""
        for descriptor in self.shared.descriptors:
            os.close(descriptor)


@pytest.fixture
def host() -> Generator[Host]:
    made = Host()
    yield made
    made.close()


def call(*, running: int | None = None, per_minute: int | None = None, weight: int = 1) -> Wanted:
    """An ordinary call, or a batch of several."""
    return Wanted(weight, weight, running, per_minute)


def test_calls_that_run_in_any_worker_count(host: Host) -> None:
    leaves = [worker.enter("c", call(running=3)) for worker in host.workers]
    for worker in host.workers:
        with pytest.raises(TooManyRunning) as full:
            worker.enter("c", call(running=3))
        assert full.value.wait == 1.0
    leaves[1]()
    host.workers[2].enter("c", call(running=3))
    with pytest.raises(TooManyRunning):
        host.workers[0].enter("c", call(running=3))


def test_a_place_is_given_back_once(host: Host) -> None:
    first = host.workers[0].enter("c", call(running=2))
    host.workers[0].enter("c", call(running=2))
    first()
    first()
    host.workers[1].enter("c", call(running=2))
    with pytest.raises(TooManyRunning):
        host.workers[1].enter("c", call(running=2))


def test_connections_do_not_count_for_each_other(host: Host) -> None:
    for number in range(300):
        host.workers[number % COLUMNS].enter(f"c{number}", call(running=1, per_minute=1))
    for number in range(300):
        with pytest.raises(TooManyRunning):
            host.workers[(number + 1) % COLUMNS].enter(f"c{number}", call(running=1, per_minute=1))


def test_a_batch_counts_each_of_its_messages(host: Host) -> None:
    host.workers[0].enter("c", call(running=5, weight=3))
    with pytest.raises(TooManyRunning):
        host.workers[1].enter("c", call(running=5, weight=3))
    host.workers[1].enter("c", call(running=5, weight=2))


@pytest.mark.parametrize("limit", [call(running=4, weight=5), call(per_minute=4, weight=5)])
def test_a_batch_that_never_fits_is_not_told_to_wait(host: Host, limit: Wanted) -> None:
    with pytest.raises(TooMany) as never:
        host.workers[0].enter("c", limit)
    assert never.value.wait is None


def test_after_the_told_wait_it_fits_and_a_moment_before_it_does_not(host: Host) -> None:
    host.clock.now = 1000.7
    host.workers[0].enter("c", call(per_minute=2))
    host.clock.now = 1010.2
    host.workers[1].enter("c", call(per_minute=2))
    host.clock.now = 1030.0
    with pytest.raises(TooManyThisMinute) as full:
        host.workers[2].enter("c", call(per_minute=2))
    assert full.value.wait == 31.0
    host.clock.now = 1060.999
    with pytest.raises(TooManyThisMinute):
        host.workers[2].enter("c", call(per_minute=2))
    host.clock.now = 1061.0
    host.workers[2].enter("c", call(per_minute=2))
    with pytest.raises(TooManyThisMinute) as full:
        host.workers[0].enter("c", call(per_minute=2, weight=2))
    assert full.value.wait == 61.0


def test_what_is_refused_is_not_counted(host: Host) -> None:
    host.workers[0].enter("c", call(per_minute=2))
    for _ in range(5):
        with pytest.raises(TooManyThisMinute):
            host.workers[1].enter("c", call(per_minute=2, weight=2))
        with pytest.raises(TooManyRunning):
            host.workers[1].enter("c", Wanted(1, 1, 1, 100))
    host.workers[1].enter("c", call(per_minute=2))


def test_a_lower_limit_lets_what_runs_end_and_holds_for_the_next(host: Host) -> None:
    leaves = [host.workers[0].enter("c", call(running=4)) for _ in range(4)]
    for leave in leaves[:3]:
        with pytest.raises(TooManyRunning):
            host.workers[1].enter("c", call(running=2))
        leave()
    host.workers[1].enter("c", call(running=2))


def test_a_dead_worker_s_calls_are_forgotten_and_its_minute_is_not(host: Host) -> None:
    host.workers[0].enter("c", call(running=2, per_minute=3))
    host.workers[0].enter("c", call(running=2, per_minute=3))
    with pytest.raises(TooManyRunning):
        host.workers[1].enter("c", call(running=2, per_minute=3))
    forget_running(host.words, 0)
    successor = host.worker(0)
    successor.enter("c", call(running=2, per_minute=3))
    with pytest.raises(TooManyThisMinute):
        host.workers[1].enter("c", call(running=2, per_minute=3))


def test_places_of_idle_connections_are_used_again_and_when_none_is_idle_that_is_said(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All connections want the same places, so that as few as `PROBES` of them fill what there is.
    tags = iter(range(ROWS, ROWS * (PROBES * 4), ROWS))
    known: dict[str, int] = {}

    def tag(connection: str) -> int:
        return known[connection] if connection in known else known.setdefault(connection, next(tags))

    monkeypatch.setattr("toolbox_dtma.gateway.counts._tag", tag)
    worker = host.workers[0]
    for number in range(PROBES):
        worker.enter(f"idle-{number}", call(per_minute=1))()
    with pytest.raises(NoRoom):
        worker.enter("one-more", call(per_minute=1))
    host.clock.now += WINDOW + 10
    for number in range(PROBES):
        worker.enter(f"busy-{number}", call(running=1))
    host.clock.now += WINDOW + 10
    with pytest.raises(NoRoom):
        worker.enter("one-more", call(running=1))
    with pytest.raises(TooManyRunning):
        host.workers[1].enter("busy-7", call(running=1))
    # Another worker has room of its own, and finds nothing of those who are gone.
    host.workers[1].enter("idle-7", call(running=1, per_minute=1))


def test_a_process_stopped_while_it_counts_counts_anew(host: Host) -> None:
    stops = iter([0.0, 70.0, 0.0, 0.0])
    start = host.clock.now

    def clock() -> float:
        host.clock.now += next(stops)
        return host.clock.now

    stopped = Counts(host.words, 0, fence=host.shared.pass_fence, monotonic=clock)
    leave = stopped.enter("c", call(running=1, per_minute=1))
    assert host.clock.now == start + 70.0
    # One place is taken, not two; and it is of the later moment.
    with pytest.raises(TooManyThisMinute) as full:
        host.workers[1].enter("c", call(per_minute=1))
    assert full.value.wait == 61.0
    leave()
    host.workers[1].enter("c", call(running=1))


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(1, 6),
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(0, COLUMNS - 1), st.integers(1, 3)), max_size=80),
)
def test_no_minute_has_more_than_the_limit_and_what_fits_into_61_seconds_is_let_in(
    limit: int, steps: list[tuple[float, int, int]]
) -> None:
    host = Host()
    let_in: list[tuple[float, int]] = []
    try:
        for pause, column, weight in steps:
            host.clock.now += pause
            now = host.clock.now
            recent = sum(count for at, count in let_in if at > now - WINDOW - 1)
            try:
                host.workers[column].enter("c", call(per_minute=limit, weight=weight))
            except TooManyThisMinute as full:
                assert recent + weight > limit
                if full.wait is None:
                    assert weight > limit
            else:
                let_in.append((now, weight))
                assert sum(count for at, count in let_in if at > now - WINDOW) <= limit
    finally:
        host.close()


PROCESSES = 4
REAL_SECONDS = 4.0
FASTER = 50
"""The clock of the processes goes so much faster than ours, so that minutes pass within the test."""


def _hammer(shared: SharedMemory, column: int, wanted: Wanted, pipe: Pipe) -> None:
    """A worker's process: lets in what it can, and tells when, by the clock that its counts use."""
    dice = random.Random(column)
    read: list[float] = []

    def clock() -> float:
        read.append(time.monotonic() * FASTER)
        return read[-1]

    counts = Counts(shared.map(), column, fence=shared.pass_fence, monotonic=clock)
    let_in: list[float] = []
    spans: list[tuple[float, float]] = []
    running: list[tuple[float, Callable[[], None]]] = []
    ends = pipe.recv()
    while time.monotonic() < ends:
        if running and dice.random() < 0.6:
            begun, leave = running.pop(dice.randrange(len(running)))
            spans.append((begun, time.monotonic()))
            leave()
        try:
            leave = counts.enter("c", wanted)
        except TooMany:
            continue
        running.append((time.monotonic(), leave))
        # The last reading asked whether it was stopped meanwhile; the one before is when it was let in.
        let_in.append(read[-2])
    spans += [(begun, time.monotonic()) for begun, _ in running]
    pipe.send((let_in, spans))


def _hammered(wanted: Wanted) -> tuple[list[float], list[tuple[float, float]]]:
    """What several processes together let in, and what ran, while one after the other was stopped anywhere."""
    context = multiprocessing.get_context("fork")
    shared = SharedMemory.make(PROCESSES)
    pipes: list[Pipe] = []
    pids: list[int] = []
    for column in range(PROCESSES):
        mine, theirs = context.Pipe()
        process = context.Process(target=_hammer, args=(shared, column, wanted, theirs), daemon=True)
        process.start()
        assert process.pid is not None
        pipes.append(mine)
        pids.append(process.pid)
    ends = time.monotonic() + REAL_SECONDS
    for pipe in pipes:
        pipe.send(ends)
    dice = random.Random(7)
    while time.monotonic() < ends:
        pid = dice.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        _wait_until_stopped(pid)
        os.kill(pid, signal.SIGCONT)
    found: list[tuple[list[float], list[tuple[float, float]]]] = [pipe.recv() for pipe in pipes]
    for descriptor in shared.descriptors:
        os.close(descriptor)
    assert sum(bool(let_in) for let_in, _ in found) > 1, "more than one process let something in"
    return sorted(at for let_in, _ in found for at in let_in), [span for _, spans in found for span in spans]


def _wait_until_stopped(pid: int) -> None:
    deadline = time.monotonic() + 10
    # One that had just come to its end is a zombie instead.
    while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "TZ":
        assert time.monotonic() < deadline


def test_processes_together_never_let_in_more_than_the_limit_in_any_minute() -> None:
    limit = 300
    let_in, _ = _hammered(call(per_minute=limit))
    for last, at in enumerate(let_in):
        assert last + 1 - bisect_right(let_in, at - WINDOW) <= limit
    assert len(let_in) >= 2 * limit, "more than one minute was filled"


def test_processes_together_never_run_more_than_the_limit() -> None:
    limit = 5
    let_in, spans = _hammered(call(running=limit))
    changes = sorted(change for begun, ended in spans for change in ((begun, 1), (ended, -1)))
    running = most = 0
    for _, step in changes:
        running += step
        most = max(most, running)
    assert most == limit
    assert len(let_in) > 100

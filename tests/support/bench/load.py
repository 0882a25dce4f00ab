"""A closed loop: every session calls again as soon as it was answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from support.bench.gateways import Process
from support.bench.measure import Sample, milliseconds
from support.bench.raw_calls import Endpoint, RawConnection


@dataclass(slots=True)
class Loop:
    """A way to a server, and what it did in all slices."""

    title: str
    endpoint: Endpoint
    body: bytes
    worker: Process | None = None
    """The process whose CPU time is of interest."""
    connections: list[RawConnection] = field(default_factory=list[RawConnection])
    rates: list[float] = field(default_factory=list[float])
    seconds: list[float] = field(default_factory=list[float])
    cpu: float = 0.0

    def open(self, sessions: int, warm: int) -> None:
        """Sessions, each warmed up with so many calls."""
        for _ in range(sessions):
            connection = RawConnection(self.endpoint, seconds=60)
            self.connections.append(connection)
            connection.open_session()
            for _ in range(warm):
                answer = connection.post(self.body)
                assert answer.status == 200 and b'"error"' not in answer.body, answer

    def slice(self, seconds: float) -> None:
        """Calls of all sessions for so long."""
        times: list[list[float]] = [[] for _ in self.connections]
        before = self.worker.cpu_seconds if self.worker is not None else 0.0
        begin = time.perf_counter()
        threads = [
            threading.Thread(target=_call, args=(each, self.body, begin + seconds, into))
            for each, into in zip(self.connections, times, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - begin
        assert all(times), "a session failed"
        used = self.worker.cpu_seconds - before if self.worker is not None else 0.0
        self.cpu += used
        self.rates.append(sum(map(len, times)) / took)
        self.seconds += [value for each in times for value in each]

    @property
    def rate(self) -> float:
        """Calls per second, in the slice in the middle."""
        return sorted(self.rates)[len(self.rates) // 2]

    def cells(self) -> tuple[str, ...]:
        """As `LOOPS` names them."""
        sample = Sample.of(self.seconds)
        cpu = f"{self.cpu / len(self.seconds) * 1e6:.0f}" if self.worker is not None else ""
        times = (milliseconds(sample.at(share)) for share in (0.5, 0.99))
        return f"{len(self.seconds):,}", f"{self.rate:,.{0 if self.rate > 100 else 1}f}", *times, cpu

    def close(self) -> None:
        """Close the connections."""
        for connection in self.connections:
            connection.close()


LOOPS = ("calls", "calls per second", "p50", "p99", "worker's CPU per call (µs)")
"""Header of what `Loop.cells` gives."""


@contextmanager
def opened(loops: Sequence[Loop], *, sessions: int, warm: int) -> Generator[None]:
    """Every loop with so many sessions, each warmed up with so many calls."""
    try:
        for loop in loops:
            loop.open(sessions, warm)
        yield
    finally:
        for loop in loops:
            loop.close()


def in_turn(loops: Sequence[Loop], *, slices: int, seconds: float) -> None:
    """Slices of every loop, alternately."""
    for _ in range(slices):
        for loop in loops:
            loop.slice(seconds)


def _call(connection: RawConnection, body: bytes, until: float, into: list[float]) -> None:
    """Until then, or until a call fails, which leaves the list empty."""
    begin = time.perf_counter()
    while begin < until:
        if connection.post(body).status != 200:
            into.clear()
            return
        end = time.perf_counter()
        into.append(end - begin)
        begin = end

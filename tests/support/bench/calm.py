"""Tells times at which the machine is as fast as it can be from those at which its other tenants slow it down.

Two levels of speed were seen that differ by half, each for some seconds at a time, while nothing else ran here.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from os import sched_getaffinity
from typing import Self, TypeVar

T = TypeVar("T")

TOLERATED = 1.15
"""How much slower than at its best the machine may be while something is measured."""
_WARMING = 20
"""Looks at the beginning, so that the best is known."""
_PAUSE = 0.2

_WORK = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
for _ in sys.stdin:
    took = []
    for _ in range(4):
        begin, total = time.perf_counter(), 0
        for number in range(40_000):
            total += number * number
        took.append(time.perf_counter() - begin)
    print(min(took), flush=True)
"""


class Calm:
    """Measures what is to be measured while the machine is calm; again if it was not, as long as patience lasts."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds that waiting and repeating may take altogether; afterwards everything counts."""
        argv = [sys.executable, "-S", "-c", _WORK]
        self._cores = [
            subprocess.Popen([*argv, str(core)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for core in sorted(sched_getaffinity(0))
        ]
        self._left = patience
        self._pause = threading.Event()
        self._best = min(self._look() for _ in range(_WARMING))
        self.calm = self.disturbed = 0
        """Measurements of either kind that count."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for core in self._cores:
            core.communicate(timeout=10)

    def _look(self) -> float:
        """Seconds that the slowest core takes for a fixed piece of work, all of them at once."""
        for core in self._cores:
            assert core.stdin is not None
            core.stdin.write("\n")
            core.stdin.flush()
        took: list[float] = []
        for core in self._cores:
            assert core.stdout is not None
            took.append(float(core.stdout.readline()))
        return max(took)

    def _is_calm(self) -> bool:
        seen = self._look()
        self._best = min(self._best, seen)
        return seen <= self._best * TOLERATED

    def measured(self, measure: Callable[[], T]) -> T:
        """What `measure` returns; it is called again when the machine was slow right before or after it."""
        begin = time.monotonic()
        while True:
            calm_before = self._is_calm()
            if calm_before or self._spent(begin):
                called = time.monotonic()
                result = measure()
                took = time.monotonic() - called
                if calm_before and self._is_calm():
                    self.calm += 1
                    break
                if self._spent(begin):
                    self.disturbed += 1
                    break
            else:
                took = 0.0
                self._pause.wait(_PAUSE)
        self._left -= max(0.0, time.monotonic() - begin - took)
        return result

    def _spent(self, begin: float) -> bool:
        return time.monotonic() - begin >= self._left

    @property
    def summary(self) -> str:
        """How many measurements are which."""
        return f"{self.calm} of {self.calm + self.disturbed} slices were measured while the machine was calm"

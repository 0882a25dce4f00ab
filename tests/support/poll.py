"""Waiting for a condition: bounded, and with the last state in the message when it does not come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(what: str, look: Callable[[], T], good: Callable[[T], bool] = bool, *, seconds: float = 30.0) -> T:
    """The first value of `look` that is `good`; fails after `seconds` with the last one seen."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if good(seen):
            return seen
        if time.monotonic() >= deadline:
            raise AssertionError(f"not {what} after {seconds:.0f}s; last seen: {seen!r}")
        pause.wait(0.1)

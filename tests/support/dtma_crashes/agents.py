"""Agents that never stop calling while a host's DTMA is killed again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

Call = Callable[[str, str], str]
"""(instance, token) → what came of one tool call."""

PAUSE = 0.03


class Agents:
    """Calls with every token in turn, and remembers what must not have happened."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}
        self._ended: set[str] = set()
        self._kept: set[str] = set()
        self.calls = 0
        self.answered = 0
        self.revived: list[str] = []
        """One line for each answer to a token after its end had been confirmed."""
        self.interrupted: list[str] = []
        """One line for each call that failed although nothing that it needs was changed."""

    def begin(self, instance: str, tokens: dict[str, str]) -> None:
        """Call with these tokens; forget those of a life before, whose instance is gone."""
        with self._lock:
            self._tokens = dict.fromkeys(tokens.values(), instance)
            self._kept = set()

    def ended(self, token: str) -> None:
        """The host has confirmed that this token opens nothing any more."""
        with self._lock:
            self._ended.add(token)

    @contextmanager
    def uninterrupted(self, tokens: list[str]) -> Generator[None]:
        """Inside, every call with these tokens is answered."""
        with self._lock:
            self._kept = set(tokens)
        try:
            yield
        finally:
            with self._lock:
                self._kept = set()

    def round(self) -> None:
        """One call with each token."""
        with self._lock:
            tokens, ended, kept = dict(self._tokens), set(self._ended), set(self._kept)
        for token, instance in tokens.items():
            outcome = self._call(instance, token)
            self.calls += 1
            self.answered += outcome == "answered"
            if token in ended and outcome == "answered":
                self.revived.append(f"a token that was ended is answered by {instance}")
            with self._lock:
                still_kept = token in kept & self._kept
            if still_kept and outcome != "answered":
                self.interrupted.append(outcome)


@contextmanager
def calling(call: Call) -> Generator[Agents]:
    """Agents at work in a thread of their own."""
    agents = Agents(call)
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.wait(PAUSE):
                agents.round()
        except BaseException as error:
            # Raised again by the test: a thread that ended silently would prove nothing.
            failures.append(error)

    thread = threading.Thread(target=work, name="agents", daemon=True)
    thread.start()
    try:
        yield agents
    finally:
        stop.set()
        thread.join(timeout=30)
    for failure in failures:
        raise failure

"""A work queue of keys: each at most once waiting, at most once running, and of one share only so many at once.

`KeyQueue` is the rule without I/O: time is an argument. `WorkQueue` is what workers wait on.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Mapping

from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.runtime import Clock

_VOID = 64
"""So many void times are kept before they are cleared out."""

ShareOf = Callable[[Key], Hashable | None]
"""Whom a key's work waits for, its host say; None: nobody who could hold it up."""


def no_share(_: Key) -> None:
    """Every key for itself."""


class KeyQueue:
    """Which key is due. A key added while it runs runs once more; whoever asks for the soonest time wins.

    A bulkhead: of the keys of one share at most `share_limit` run at once; the others step aside and hold up nobody.
    """

    def __init__(self, share_of: ShareOf = no_share, share_limit: int = 1) -> None:
        self._share_of = share_of
        self._share_limit = share_limit
        self._ready: deque[Key] = deque()
        self._aside: defaultdict[Hashable, deque[Key]] = defaultdict(deque)
        """Due keys whose share is taken, by share."""
        self._called: dict[Key, Hashable] = {}
        """Ready keys that stepped aside before, with the share that they waited for."""
        self._waiting: set[Key] = set()
        """What is in `_ready` or `_aside`."""
        self._running: dict[Key, Hashable | None] = {}
        self._taken: Counter[Hashable] = Counter()
        self._again: set[Key] = set()
        """Running keys that were added meanwhile."""
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        """Times asked for; an entry that differs from `_due` is void."""
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._again)

    @property
    def ready(self) -> bool:
        """Whether `pop` may find a key without waiting for a time or for a share."""
        return bool(self._ready)

    @property
    def running(self) -> int:
        """How many keys are being worked on."""
        return len(self._running)

    @property
    def aside(self) -> int:
        """How many due keys wait for others of their share to end."""
        return sum(map(len, self._aside.values()))

    @property
    def delayed(self) -> int:
        """How many keys have a time to wait for."""
        return len(self._due)

    @property
    def planned(self) -> int:
        """How many times are kept, void ones included: a bound on memory."""
        return len(self._heap)

    def add(self, key: Key) -> None:
        """Due now, whatever was planned."""
        self._due.pop(key, None)
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)

    def add_at(self, key: Key, when: float) -> None:
        """Due at `when`, unless it is due earlier already."""
        if key in self._waiting or key in self._again or self._due.get(key, float("inf")) <= when:
            return
        self._due[key] = when
        heapq.heappush(self._heap, (when, key))
        if len(self._heap) > 2 * len(self._due) + _VOID:
            # A void entry of a far date would otherwise stay until then.
            self._heap = [(due, key) for key, due in self._due.items()]
            heapq.heapify(self._heap)

    def pop(self, now: float) -> Key | None:
        """The next due key, which counts as running until `done`; None when nothing is due and free to run."""
        while (due := self.next_due()) is not None and due <= now:
            self.add(heapq.heappop(self._heap)[1])
        while self._ready:
            key = self._ready.popleft()
            # Not asked again: whoever was called for a share takes it, or those behind would wait for ever.
            share = self._called.pop(key) if key in self._called else self._share_of(key)
            if share is not None and self._taken[share] >= self._share_limit:
                self._aside[share].append(key)
                continue
            self._waiting.discard(key)
            self._running[key] = share
            if share is not None:
                self._taken[share] += 1
            return key
        return None

    def next_due(self) -> float | None:
        """When the earliest delayed key is due."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def done(self, key: Key) -> None:
        """The run ended; it starts over if the key was added meanwhile."""
        share = self._running.pop(key)
        if share is not None:
            self._give_back(share)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _give_back(self, share: Hashable) -> None:
        self._taken[share] -= 1
        if not self._taken[share]:
            del self._taken[share]
        if aside := self._aside.get(share):
            key = aside.popleft()
            self._called[key] = share
            # In front: it waited longer than what is ready now.
            self._ready.appendleft(key)
            if not aside:
                del self._aside[share]

    def fail(self, key: Key) -> int:
        """Count a failure. Returns how many came before, since the last `forget`."""
        before = self._failures.get(key, 0)
        self._failures[key] = before + 1
        return before

    def forget(self, key: Key) -> None:
        """The key succeeded: its next failure is its first."""
        self._failures.pop(key, None)


class WorkQueue:
    """`KeyQueue` on a clock, with workers that wait for keys."""

    def __init__(
        self,
        clock: Clock,
        *,
        backoff_first: float = 1.0,
        backoff_max: float = 30.0,
        share_of: ShareOf = no_share,
        share_limit: int = 1,
        rng: random.Random | None = None,
    ) -> None:
        self._keys = KeyQueue(share_of, share_limit)
        self._clock = clock
        self._first = backoff_first
        self._max = backoff_max
        # Jitter needs no secrecy.
        self._rng = rng or random.Random()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def running(self) -> int:
        """How many keys are being worked on."""
        return self._keys.running

    @property
    def aside(self) -> int:
        """How many due keys wait for others of their share to end."""
        return self._keys.aside

    @property
    def delayed(self) -> int:
        """How many keys wait for a time."""
        return self._keys.delayed

    def add(self, key: Key) -> None:
        """Due now: beats any delay and back-off."""
        self._keys.add(key)
        self._wake()

    def add_after(self, key: Key, seconds: float) -> None:
        """Due in `seconds`, unless due sooner already."""
        self._keys.add_at(key, self._clock.monotonic() + seconds)
        self._wake()

    def retry(self, key: Key, *, at_least: float = 0.0) -> float:
        """Due after the key's back-off: exponential, jittered, bounded. Returns the delay in seconds."""
        exponent = min(self._keys.fail(key), 32)
        ceiling = min(self._max, self._first * 2.0**exponent)
        # Never above the bound, never below half of the step: spread without hammering.
        delay = max(at_least, ceiling * self._rng.uniform(0.5, 1.0))
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """The key succeeded: its back-off starts over."""
        self._keys.forget(key)

    async def get(self) -> Key | None:
        """The next due key, to be ended with `done`; None once the queue is closed."""
        while not self._closed:
            key = self._keys.pop(self._clock.monotonic())
            if key is not None:
                # Several keys may have come due at once, for one wake-up.
                self._wake()
                return key
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            self._arm()
            try:
                await waiter
            except asyncio.CancelledError:
                # The wake-up may have been meant for another worker.
                if waiter.done() and not waiter.cancelled():
                    self._wake()
                raise
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return None

    def done(self, key: Key) -> None:
        """The run of `key` ended."""
        self._keys.done(key)
        self._wake()

    def close(self) -> None:
        """No key is handed out any more; waiting workers get None."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._waiters:
            _resolve(self._waiters.popleft())

    def _wake(self) -> None:
        """Wake a worker for a key that is due, and set the timer for the next that is not."""
        if self._waiters:
            if self._keys.ready:
                _resolve(self._waiters.popleft())
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._keys.next_due()
        if due is not None and not self._closed:
            delay = max(0.0, due - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiters:
            _resolve(self._waiters.popleft())


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Queues:
    """One queue per kind, as `Requeue`."""

    def __init__(self, queues: Mapping[Kind, WorkQueue]) -> None:
        self._queues = queues

    def __getitem__(self, kind: Kind) -> WorkQueue:
        return self._queues[kind]

    def add(self, kind: Kind, key: Key) -> None:
        self._queues[kind].add(key)

    def add_after(self, kind: Kind, key: Key, seconds: float) -> None:
        self._queues[kind].add_after(key, seconds)

    def close(self) -> None:
        """Hand out nothing more."""
        for queue in self._queues.values():
            queue.close()

"""Workers of one kind: take a key, run the reconciler, decide when the key comes back."""

from __future__ import annotations

import asyncio
import random

import structlog

from toolbox_operator.api.meta import Key
from toolbox_operator.kube.api import Conflict, KubeError
from toolbox_operator.metrics import Metrics
from toolbox_operator.reconcile.context import Reconciler
from toolbox_operator.reconcile.errors import Stalled, Waiting
from toolbox_operator.reconcile.queue import WorkQueue
from toolbox_operator.runtime import Clock, Fenced, Leadership

log = structlog.get_logger(__name__)

RECONCILE_DEADLINE = 60.0
CONFLICT_DELAY = 0.2
"""A foreign writer that never stops makes us try at most this often, in seconds."""


class Controller:
    """A pool of workers on one queue."""

    def __init__(
        self,
        reconciler: Reconciler,
        queue: WorkQueue,
        *,
        workers: int,
        clock: Clock,
        metrics: Metrics,
        leadership: Leadership,
        deadline: float = RECONCILE_DEADLINE,
    ) -> None:
        self._reconciler = reconciler
        self._queue = queue
        self._workers = workers
        self._clock = clock
        self._metrics = metrics
        self._leadership = leadership
        self._deadline = deadline
        self._started: dict[Key, float] = {}

    async def run(self) -> None:
        """Returns once the queue is closed and every reconcile under way has ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"{self._reconciler.kind} worker {number}")

    def oldest(self) -> float:
        """For how many seconds the longest reconcile has been under way."""
        return max((self._clock.monotonic() - at for at in self._started.values()), default=0.0)

    async def _work(self) -> None:
        while (key := await self._queue.get()) is not None:
            started = self._started[key] = self._clock.monotonic()
            outcome = "cancelled"
            try:
                outcome = await self._one(key)
            finally:
                del self._started[key]
                self._metrics.reconciled(self._reconciler.kind, outcome, self._clock.monotonic() - started)
                self._queue.done(key)

    def _leads(self) -> bool:
        try:
            self._leadership.check()
        except Fenced:
            return False
        return True

    async def _one(self, key: Key) -> str:
        """One reconcile; returns its outcome for the metrics."""
        queue = self._queue
        kind = str(self._reconciler.kind)
        try:
            async with asyncio.timeout(self._deadline):
                outcome = await self._reconciler.reconcile(key)
        except Fenced as error:
            log.warning("reconcile fenced", kind=kind, key=str(key), error=str(error))
            if self._leads():
                # A host knows another leader; whether that one is real, only the Lease can tell.
                queue.retry(key)
            return "fenced"
        except Waiting as error:
            if error.after is None:
                queue.retry(key)
            else:
                queue.forget(key)
                queue.add_after(key, error.after * random.uniform(0.9, 1.1))
            return "waiting"
        except Stalled as error:
            log.info("reconcile stalled", kind=kind, key=str(key), reason=error.reason, error=error.message)
            queue.forget(key)
            return "stalled"
        except Conflict:
            queue.add_after(key, CONFLICT_DELAY * random.uniform(0.5, 1.0))
            return "conflict"
        except KubeError as error:
            delay = queue.retry(key, at_least=error.retry_after or 0.0)
            log.warning("kubernetes failed", kind=kind, key=str(key), error=str(error), retry_in=round(delay, 1))
            return "kube_error"
        except TimeoutError:
            delay = queue.retry(key)
            log.error("reconcile timed out", kind=kind, key=str(key), exc_info=True, retry_in=round(delay, 1))
            return "timeout"
        except Exception:  # The worker boundary: a bug in one object's reconcile must not end the others.
            delay = queue.retry(key)
            log.exception("reconcile failed", kind=kind, key=str(key), retry_in=round(delay, 1))
            return "error"
        queue.forget(key)
        if outcome.requeue_after is not None:
            queue.add_after(key, outcome.requeue_after)
        return "ok"

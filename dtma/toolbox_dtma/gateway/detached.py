"""Calls that run on after their client hung up, which before 2026-07-28 is not a cancellation (design, section 6)."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from toolbox_dtma.gateway.accounting import cancelled_outcome
from toolbox_dtma.gateway.call import Call
from toolbox_dtma.gateway.exchanges import Cause, Exchange, Exchanges
from toolbox_dtma.gateway.limits import AnswerTooLarge, Bounds, bounded
from toolbox_dtma.gateway.observer import UNMEASURED, Observer
from toolbox_dtma.gateway.state import Admitted, PolicyState
from toolbox_dtma.gateway.upstream.connection import Answer
from toolbox_dtma.gateway.upstream.errors import UpstreamError
from toolbox_dtma.link.messages import GrantPolicy
from toolbox_dtma.wire import CallOutcome

DETACHED_SECONDS = 600.0
"""How long a call runs on after its client hung up."""
MAX_DETACHED = 64
"""Calls of one connection that may run on in one worker, unless its own limits bound what runs."""


class Detached:
    """Those of one worker."""

    def __init__(self, exchanges: Exchanges, state: PolicyState):
        self._exchanges = exchanges
        self._state = state
        self._tasks: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)

    def take(self, exchange: Exchange, call: Call, upstream: Answer) -> bool:
        """Let the call of an exchange that ends run on, if it may. Returns whether it does."""
        grant = exchange.admitted.grant
        if not call.survives or exchange.aborted is not None or not self._may_run_on(grant):
            return False
        bounds = exchange.unbind()
        calls, exchange.calls = exchange.calls, UNMEASURED
        task = asyncio.create_task(self._finish(exchange.admitted, bounds, upstream, calls))
        self._tasks[grant.uid].add(task)
        task.add_done_callback(lambda done: self._finished(grant.uid, done))
        # Also of a task that is cancelled before its first step.
        task.add_done_callback(lambda _: calls.settle(CallOutcome.CANCELLED))
        if bounds is not None:
            task.add_done_callback(lambda _: bounds.release())
        return True

    def _may_run_on(self, grant: GrantPolicy) -> bool:
        # Where a limit bounds what runs, closing one call to make room would free its place by a hang-up.
        bounded_by_limit = grant.limits is not None and grant.limits.concurrent_calls is not None
        return bounded_by_limit or len(self._tasks.get(grant.uid, ())) < MAX_DETACHED

    def _finished(self, uid: str, task: asyncio.Task[None]) -> None:
        self._tasks[uid].discard(task)
        if not self._tasks[uid]:
            del self._tasks[uid]

    async def _finish(self, admitted: Admitted, bounds: Bounds | None, upstream: Answer, calls: Observer) -> None:
        """Read the rest of an answer that nobody waits for any more."""
        grant = admitted.grant
        with self._exchanges.enter(admitted, None) as exchange:
            if bounds is not None:
                exchange.bind(bounds)
            # A revocation may have come between the hang-up and the first step of this task.
            if self._state.still_admitted(grant.uid, admitted.digest, grant.instance) is None:
                exchange.abort(Cause.REVOKED)
            try:
                async with asyncio.timeout(DETACHED_SECONDS):
                    await upstream.head()
                    read = bounded(upstream.read, exchange.max_response_bytes)
                    while await read():
                        pass
                calls.settle(CallOutcome.DETACHED)
            except (UpstreamError, TimeoutError):
                # Ended by the server or by time: there is nobody left to tell.
                calls.settle(CallOutcome.DETACHED)
            except AnswerTooLarge:
                calls.settle(CallOutcome.LIMITED)
            except asyncio.CancelledError:
                # Revoked, out of time, or the worker stops.
                calls.settle(cancelled_outcome(exchange))
            finally:
                upstream.close()

    async def close(self) -> None:
        """End all of them."""
        running = [task for tasks in self._tasks.values() for task in tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

"""Events (events.k8s.io/v1) with our own client: named by content, so that repeats become a series."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from toolbox_operator.api.meta import GROUP, Body, Key
from toolbox_operator.kube.api import EVENTS, AlreadyExists, Conflict, Kube, KubeError, Missing
from toolbox_operator.kube.elector import micro_time
from toolbox_operator.runtime import Clock, Fenced

log = structlog.get_logger(__name__)

REPORTER = f"{GROUP}/operator"
MAX_QUEUE = 1000
MAX_REASON = 128
MAX_NOTE = 1024
"""Bytes, by the API's own validation."""
MAX_NAME = 253
RATE = 10.0
"""Events per second, after a burst of `BURST`."""
BURST = 50
CONFLICTS = 3


@dataclass(slots=True)
class _Pending:
    """An Event to write. `times` counts repeats that came while it waited."""

    body: dict[str, Any]
    times: int = 1


class Recorder:
    """`Events` with a bounded queue and one writer task. What doesn't fit, or fails, is counted and dropped."""

    def __init__(
        self, kube: Kube, *, identity: str, clock: Clock, dropped: Callable[[], None], rate: float = RATE
    ) -> None:
        self._kube = kube
        self._identity = identity[:128]
        self._clock = clock
        self._dropped = dropped
        self._rate = rate
        self._queue: OrderedDict[Key, _Pending] = OrderedDict()
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self._tokens = float(BURST)
        self._filled: float = clock.monotonic()

    def record(self, body: Body, type_: Literal["Normal", "Warning"], reason: str, note: str, action: str) -> None:
        event = self._event(body, type_, reason, note, action)
        key = Key.of(event)
        if (pending := self._queue.get(key)) is not None:
            pending.times += 1
            pending.body = event
        elif len(self._queue) >= MAX_QUEUE:
            self._dropped()
        else:
            self._queue[key] = _Pending(event)
            self._idle.clear()
            self._news.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._news.wait()
            while self._queue:
                await self._ration()
                _, pending = self._queue.popitem(last=False)
                await self._write(pending)
            self._news.clear()
            self._idle.set()

    async def flush(self, seconds: float) -> None:
        """Wait until everything queued is written, for at most so long; without rationing from now on.

        For a graceful stop, while `run` still runs.
        """
        self._hurry.set()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("events left unwritten", count=len(self._queue))

    async def _ration(self) -> None:
        """Wait for a token of the bucket."""
        now = self._clock.monotonic()
        self._tokens = min(float(BURST), self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1.0:
            wait = (1.0 - self._tokens) / self._rate
            try:
                async with asyncio.timeout(wait):
                    await self._hurry.wait()
            except TimeoutError:
                pass  # The ordinary case: the token is there now.
            self._filled += wait
            self._tokens = 1.0
        self._tokens -= 1.0

    async def _write(self, pending: _Pending) -> None:
        try:
            await self._create_or_count(pending)
        except (KubeError, Fenced) as error:
            # In a terminating namespace this is expected; nobody waits for an Event either way.
            self._dropped()
            log.debug("event not written", reason=pending.body["reason"], error=str(error))
        except Exception:  # The boundary of the writer task: an Event must never end the operator.
            self._dropped()
            log.exception("event not written", reason=pending.body["reason"])

    async def _create_or_count(self, pending: _Pending) -> None:
        body, times = pending.body, pending.times
        key = Key.of(body)
        for _ in range(CONFLICTS):
            try:
                created = await self._kube.create(EVENTS, body)
            except AlreadyExists:
                known = await self._kube.get(EVENTS, key)
                if known is None:
                    continue
            else:
                if times == 1:
                    return
                known, times = created, times - 1
            try:
                await self._kube.merge_patch(
                    EVENTS, key, known["metadata"]["resourceVersion"], self._repeat(known, times)
                )
            except (Conflict, Missing):
                continue
            return
        raise KubeError(409, f"event {key} kept changing")

    def _repeat(self, known: Body, times: int) -> dict[str, Any]:
        series: dict[str, Any] = known.get("series") or {"count": 1}
        return {"series": {"count": int(series["count"]) + times, "lastObservedTime": micro_time(self._clock.now())}}

    def _event(self, body: Body, type_: str, reason: str, note: str, action: str) -> dict[str, Any]:
        metadata = body["metadata"]
        note = _cut(note, MAX_NOTE)
        digest = hashlib.sha256("\0".join((metadata["uid"], type_, reason, note)).encode()).hexdigest()[:16]
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                "namespace": metadata["namespace"],
                "name": f"{metadata['name'][: MAX_NAME - 17]}.{digest}",
            },
            "eventTime": micro_time(self._clock.now()),
            "reportingController": REPORTER,
            "reportingInstance": self._identity,
            "action": action[:MAX_REASON] or "Reconcile",
            "reason": reason[:MAX_REASON],
            "type": type_,
            "note": note,
            "regarding": {
                "apiVersion": body["apiVersion"],
                "kind": body["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
        }


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8."""
    raw = text.encode()
    return text if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "…"

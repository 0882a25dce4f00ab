"""Call records on their way from gateway workers to owners: attributed here, kept on disk, handed out in batches."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from toolbox_dtma.call_metrics import CallMetrics
from toolbox_dtma.link.calls import CallEntry
from toolbox_dtma.link.messages import Calls
from toolbox_dtma.management.owners import Owners, Reader
from toolbox_dtma.settings import Bounds
from toolbox_dtma.state.spool import Delivery, Spool
from toolbox_dtma.state.store import State
from toolbox_dtma.wire import CallBatch, CallRecord

OLDEST = timedelta(days=7)
NEWEST = timedelta(minutes=10)
"""How far the time of a record may be from now: calls last, and clocks are set."""


@dataclass(frozen=True, slots=True)
class _Told:
    """One message of a worker, and whom to tell that it is kept."""

    delivery: Delivery
    observed: tuple[tuple[str, CallEntry], ...]
    """(instance, call) for the metrics."""
    message: Calls
    taken: Callable[[], None]


class CallLog:
    """Takes what workers tell and gives it to whom it belongs."""

    def __init__(self, *, state: State, owners: Owners, bounds: Bounds, metrics: CallMetrics):
        self._state = state
        self._owners = owners
        self._bounds = bounds
        self._metrics = metrics
        self._queue: asyncio.Queue[_Told] = asyncio.Queue()
        self._spool = Spool(
            state.folder / "calls",
            boot_id=state.boot_id,
            max_bytes=bounds.calls_bytes,
            segment_bytes=bounds.calls_segment_bytes,
        )
        # One thread: the spool's files are touched in order, and never by the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="calls")

    @property
    def held(self) -> int:
        """Records that their owners do not have yet."""
        return sum(account.held for account in tuple(self._spool.accounts.values()))

    @property
    def dropped(self) -> int:
        """Records lost for want of space since the spool was made."""
        return sum(account.dropped for account in tuple(self._spool.accounts.values()))

    async def load(self) -> None:
        """Take up what is on disk; call it before anything else."""
        await self._in_thread(self._spool.open)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run(self) -> None:
        """Write what was told, until cancelled. What came in meanwhile is written together, and synced once."""
        try:
            while True:
                told = [await self._queue.get()]
                while not self._queue.empty():
                    told.append(self._queue.get_nowait())
                await self._write(told)
        finally:
            # Waits for a write under way; what it is about is then told again by the workers, and recognised.
            self._thread.shutdown()
            self._spool.close()

    async def _write(self, told: list[_Told]) -> None:
        deliveries = [each.delivery for each in told]
        written = await asyncio.get_running_loop().run_in_executor(self._thread, self._spool.append, deliveries)
        new = {id(delivery) for delivery in written}
        for each in told:
            if id(each.delivery) in new:
                self._observe(each)
            each.taken()

    def _observe(self, told: _Told) -> None:
        for instance, call in told.observed:
            if instance in self._state.instances:
                self._metrics.call(instance, call)
        unknown = len(told.message.calls) - len(told.observed)
        self._metrics.lost("unknown", unknown)
        self._metrics.lost("killed", told.message.lost)
        self._metrics.refusals(told.message.refusals)

    # ------------------------------------------------------------------ workers
    def take(self, message: Calls, taken: Callable[[], None]) -> None:
        """A worker tells of calls. `taken` is called once they are on disk, or counted as dropped."""
        records: list[tuple[str, bytes]] = []
        observed: list[tuple[str, CallEntry]] = []
        dropped: Counter[str] = Counter()
        now = self._state.now()
        for call in message.calls:
            whose = self._whose(call.connection)
            if whose is None:
                continue
            owner, namespace, agent, instance = whose
            observed.append((instance, call))
            began = _time_of(call.id)
            if began is None or not now - OLDEST < began < now + NEWEST:
                dropped[owner] += 1
                continue
            record = CallRecord(
                id=call.id,
                connection=call.connection,
                namespace=namespace,
                agent=agent,
                instance=instance,
                # A database may refuse it in text.
                tool=call.tool.replace("\0", "\ufffd"),
                outcome=call.outcome,
                started_at=began,
                duration_ms=call.duration_ms,
                bytes_in=call.bytes_in,
                bytes_out=call.bytes_out,
                protocol_version=call.protocol_version,
                trace_id=call.trace_id,
            )
            records.append((owner, record.model_dump_json(by_alias=True).encode()))
        for connection, count in message.dropped.items():
            whose = self._whose(connection)
            if whose is not None:
                dropped[whose[0]] += count
        if len(self._state.owners) == 1:
            # Where there is one owner only, what cannot be attributed was that one's.
            dropped[next(iter(self._state.owners))] += message.lost
        delivery = Delivery(message.stream, message.batch, tuple(records), {o: n for o, n in dropped.items() if n})
        self._queue.put_nowait(_Told(delivery, tuple(observed), message, taken))

    def _whose(self, connection: str) -> tuple[str, str, str, str] | None:
        """(owner, namespace, agent, instance) of a connection by its grant, also when that has just gone."""
        held = self._state.grants.get(connection)
        if held is not None:
            return held.owner, held.grant.namespace, held.grant.agent, held.grant.instance
        departed = self._state.departed.get(connection)
        return (departed.owner, departed.namespace, departed.agent, departed.instance) if departed is not None else None

    # ------------------------------------------------------------------- owners
    async def read(self, reader: Reader, after: str | None) -> bytes:
        """A `CallBatch` as JSON; what comes before the cursor is acknowledged. Raises `Refused` (NotClaimed)."""
        self._owners.admit(reader)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, reader.owner, after)

    def _answer(self, owner: str, after: str | None) -> bytes:
        self._spool.acknowledge(owner, after)
        records, cursor = self._spool.read(owner, after, self._bounds.calls_batch)
        account = self._spool.accounts.get(owner)
        batch = {"cursor": cursor, "items": records, "dropped": account.dropped if account is not None else 0}
        return CallBatch.model_validate(batch).model_dump_json(by_alias=True).encode()


def _time_of(id_: UUID) -> datetime | None:
    """The time in a UUIDv7 (RFC 9562, section 5.7), to the millisecond; None for any other."""
    if id_.version != 7:
        return None
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=id_.int >> 80)

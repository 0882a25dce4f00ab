"""The pulling of call records against a real DTMA over TLS, whose gateway worker does what the test says."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from support.async_poll import until
from support.dtma.host import DtmaHost
from support.dtma.wanted import DESIRED, GRANT, INSTANCE, settings_of
from support.dtma.worker import ScriptedWorker, connected
from support.reconcilers.fakes import Asked, Leading
from toolbox_dtma.link.calls import CallEntry
from toolbox_dtma.link.messages import TO_WORKER, Calls, CallsTaken
from toolbox_dtma.settings import Bounds
from toolbox_dtma.wire import CallOutcome, CallRecord
from toolbox_operator.api.meta import Key
from toolbox_operator.domain.host import HostState, HostView
from toolbox_operator.hosts.registry import Hosts
from toolbox_operator.runtime import SystemClock, Timings
from toolbox_operator.store.ids import uuid7

pytestmark = pytest.mark.component

TOOLBOX = Key("mcp-system", "tbx-1")
CONNECTION = "1f2d3c4b-5a69-4788-9c0d-1e2f3a4b5c6d"
TIMINGS = Timings(backoff_first=0.05, backoff_max=0.2, calls_active=0.01, calls_idle=0.02)
PAGE = 10


class CallingWorker(ScriptedWorker):
    """Tells of calls, and waits until DTMA has them on disk."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = secrets.token_hex(16)
        self._told = 0
        self._taken = asyncio.Event()

    async def _obey(self, payload: bytes) -> None:
        if isinstance(TO_WORKER.validate_json(payload), CallsTaken):
            self._taken.set()
        else:
            await super()._obey(payload)

    async def called(self, *tools: str) -> None:
        """Calls of these tools ended."""
        rng, now = random.Random(), datetime.now(UTC)
        calls = tuple(
            CallEntry(
                id=UUID(uuid7(now, rng)),
                connection=CONNECTION,
                tool=tool,
                outcome=CallOutcome.OK,
                duration_ms=1,
                bytes_in=2,
                bytes_out=3,
            )
            for tool in tools
        )
        self._taken.clear()
        self._told += 1
        await self._send(Calls(stream=self._stream, batch=self._told, calls=calls))
        async with asyncio.timeout(20):
            await self._taken.wait()


@dataclass
class Sink:
    """Keeps what it gets, while it wants to."""

    ready: bool = True
    willing: bool = True
    offered: int = 0
    kept: list[CallRecord] = field(default_factory=list[CallRecord])

    async def keep(self, toolbox: Key, calls: Sequence[CallRecord], unreadable: int) -> bool:
        assert (toolbox, unreadable) == (TOOLBOX, 0)
        self.offered += len(calls)
        if self.willing:
            self.kept += calls
        return self.willing

    @property
    def tools(self) -> list[str]:
        """In the order they came."""
        return [call.tool for call in self.kept]


@asynccontextmanager
async def operator(dtma: DtmaHost, sink: Sink) -> AsyncGenerator[Hosts]:
    """An operator process in contact with the host."""
    hosts = Hosts(leadership=Leading(), queue=Asked(), clock=SystemClock(), timings=TIMINGS, calls=sink)

    def view() -> HostView:
        found = hosts.view(TOOLBOX)
        assert found is not None
        return found

    try:
        await hosts.ensure(TOOLBOX, "toolbox-uid", settings_of(dtma), lease=40.0)
        await until("identified", lambda: view().host_id)
        hosts.admit(TOOLBOX, view().host_id or "")
        await until("reachable", lambda: view().state, lambda state: state is HostState.REACHABLE)
        yield hosts
    finally:
        await hosts.aclose()


@pytest.fixture
async def dtma() -> AsyncGenerator[DtmaHost]:
    with tempfile.TemporaryDirectory(prefix="dtma-") as folder:
        os.chmod(folder, 0o755)  # the gateway's user has to enter it
        host = DtmaHost(Path(folder), bounds=Bounds(calls_batch=PAGE))
        await host.start()
        try:
            yield host
        finally:
            await host.stop()


async def granted(hosts: Hosts) -> None:
    await hosts.host(TOOLBOX).put_instance(INSTANCE, DESIRED)
    await hosts.host(TOOLBOX).put_grant(CONNECTION, GRANT)


async def test_records_are_pulled_page_by_page_each_once_and_as_the_host_attributes_them(dtma: DtmaHost) -> None:
    sink, tools = Sink(), [f"tool-{number}" for number in range(3 * PAGE + 1)]
    async with connected(CallingWorker(), dtma.socket_path) as worker, operator(dtma, sink) as hosts:
        assert isinstance(worker, CallingWorker)
        await granted(hosts)
        await worker.called(*tools)
        await until("all", lambda: len(sink.kept), lambda number: number >= len(tools))
        await worker.called("one-more")
        await until("one more", lambda: len(sink.kept), lambda number: number > len(tools))
        assert sink.tools == [*tools, "one-more"]
        view = hosts.pulls()[TOOLBOX].view
        assert view.supported and view.dropped == 0 and view.pulled is not None
    (first, *_) = sink.kept
    assert (first.connection, first.instance) == (CONNECTION, INSTANCE)
    assert (first.namespace, first.agent) == ("team-a", "research-bot")


async def test_records_that_were_not_kept_come_again_also_after_both_sides_were_started_anew(dtma: DtmaHost) -> None:
    unwilling, sink = Sink(willing=False), Sink()
    async with connected(CallingWorker(), dtma.socket_path) as worker, operator(dtma, unwilling) as hosts:
        assert isinstance(worker, CallingWorker)
        await granted(hosts)
        await worker.called("a", "b")
        await until("offered again", lambda: unwilling.offered, lambda number: number >= 4)
    await dtma.restart()
    async with connected(CallingWorker(), dtma.socket_path) as worker, operator(dtma, sink):
        assert isinstance(worker, CallingWorker)
        await until("kept", lambda: sink.tools, lambda tools: tools == ["a", "b"])
        await worker.called("c")
        await until("kept", lambda: sink.tools, lambda tools: tools == ["a", "b", "c"])


async def test_an_acknowledged_record_never_comes_again(dtma: DtmaHost) -> None:
    sink, later = Sink(), Sink()
    async with connected(CallingWorker(), dtma.socket_path) as worker:
        assert isinstance(worker, CallingWorker)
        async with operator(dtma, sink) as hosts:
            await granted(hosts)
            await worker.called("a")
            await until("kept", lambda: sink.tools, lambda tools: tools == ["a"])
            pulled = hosts.pulls()[TOOLBOX].view.pulled
            # The pull after the next one is answered: the one between has acknowledged.
            for _ in range(2):
                pulled = await until(
                    "pulled again", lambda: hosts.pulls()[TOOLBOX].view.pulled, lambda at, before=pulled: at != before
                )
        async with operator(dtma, later):
            await worker.called("b")
            await until("kept", lambda: later.tools, lambda tools: tools == ["b"])


async def test_nothing_is_asked_for_while_it_could_not_be_kept(dtma: DtmaHost) -> None:
    sink = Sink(ready=False)
    async with connected(CallingWorker(), dtma.socket_path) as worker, operator(dtma, sink) as hosts:
        assert isinstance(worker, CallingWorker)
        await granted(hosts)
        await worker.called("a")
        assert await hosts.pulls()[TOOLBOX].step() == TIMINGS.calls_idle
        assert sink.offered == 0
        sink.ready = True
        await until("kept", lambda: sink.tools, lambda tools: tools == ["a"])

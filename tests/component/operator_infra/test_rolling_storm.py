"""One Secret of very many servers changes: they roll through the queue, within its limits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from support.async_poll import until
from support.reconcilers.fakes import Leading
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.domain.inputs import Ref, Source
from toolbox_operator.metrics import Metrics
from toolbox_operator.reconcile.controller import Controller
from toolbox_operator.reconcile.queue import Queues, WorkQueue
from toolbox_operator.reconcile.sources import Sources
from toolbox_operator.runtime import NOTHING, Outcome, SystemClock

pytestmark = pytest.mark.component

SERVERS, HOSTS, WORKERS, PER_HOST = 500, 5, 32, 4
SECRET = Key("ns", "shared")


def host_of(key: Key) -> int:
    return int(key.name) % HOSTS


@dataclass
class Rolling:
    """A reconciler that takes its time, and counts who is at it at once, by host."""

    sources: Sources
    kind: Kind = Kind.MCP_SERVER
    read: dict[Key, int] = field(default_factory=dict[Key, int])
    """How often the values were read anew, by server."""
    marks: dict[Key, int] = field(default_factory=dict[Key, int])
    active: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(HOSTS), 0))
    most: int = 0
    most_of_a_host: int = 0

    async def reconcile(self, key: Key) -> Outcome:
        mark = self.sources.reads((self.kind, key), [Ref(Source.SECRET, SECRET.name)])
        if self.marks.get(key) == mark:
            return NOTHING
        host = host_of(key)
        self.active[host] += 1
        self.most = max(self.most, sum(self.active.values()))
        self.most_of_a_host = max(self.most_of_a_host, self.active[host])
        try:
            # As long as a call to a host would take: whoever may run at once does.
            await asyncio.sleep(0.001)
        finally:
            self.active[host] -= 1
        self.read[key] = self.read.get(key, 0) + 1
        self.marks[key] = mark
        return NOTHING


async def test_a_shared_secret_that_changes_rolls_every_server_once_and_few_at_a_time() -> None:
    queue = WorkQueue(SystemClock(), share_of=host_of, share_limit=PER_HOST)
    others = {kind: WorkQueue(SystemClock()) for kind in Kind if kind is not Kind.MCP_SERVER}
    sources = Sources(Queues({Kind.MCP_SERVER: queue, **others}), spread=60.0)
    rolling = Rolling(sources)
    controller = Controller(
        rolling, queue, workers=WORKERS, clock=SystemClock(), metrics=Metrics(), leadership=Leading()
    )
    keys = [Key("ns", str(number)) for number in range(SERVERS)]
    for key in keys:
        queue.add(key)
    task = asyncio.create_task(controller.run())

    def everybody(times: int) -> bool:
        return all(rolling.read.get(key) == times for key in keys) and not len(queue)

    try:
        await until("all read once", lambda: everybody(1))
        for _ in range(20):  # in one moment: nobody has started when the last one comes
            sources.changed(Source.SECRET, SECRET)
        assert len(queue) == SERVERS
        await until("all read once more", lambda: everybody(2))
        assert rolling.most <= WORKERS
        assert rolling.most_of_a_host == PER_HOST
    finally:
        queue.close()
        await asyncio.wait_for(task, 5)

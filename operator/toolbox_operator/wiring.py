"""Puts the operator together: what a process is while it waits, and what it is while it leads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import structlog

from toolbox_operator.api.meta import Body, Kind
from toolbox_operator.health import Health
from toolbox_operator.hosts.registry import Hosts
from toolbox_operator.kube.api import LEASES, NAMESPACES, RESOURCE_OF, SECRETS, KubeError, Resource
from toolbox_operator.kube.cache import EventType, ObjectCache, SecretCache
from toolbox_operator.kube.client import READ_DEADLINE, KubeClient
from toolbox_operator.kube.elector import Elector
from toolbox_operator.kube.freshness import WatchJudge
from toolbox_operator.kube.labels import NamespaceLabels
from toolbox_operator.kube.login import Login
from toolbox_operator.kube.metadata import Audience, MetadataWatch
from toolbox_operator.kube.recorder import Recorder
from toolbox_operator.kube.rest import KubeRest, collection_path
from toolbox_operator.kube.watch import Watches
from toolbox_operator.measured import MeasuredHost
from toolbox_operator.metrics import Metrics, Pulled
from toolbox_operator.reconcile.connection import ConnectionReconciler
from toolbox_operator.reconcile.context import Context, Reconciler
from toolbox_operator.reconcile.controller import RECONCILE_DEADLINE, Controller
from toolbox_operator.reconcile.fanout import FanOut
from toolbox_operator.reconcile.index import Index, instance_ids
from toolbox_operator.reconcile.mcpserver import MCPServerReconciler
from toolbox_operator.reconcile.queue import Queues, WorkQueue
from toolbox_operator.reconcile.relabelled import Relabelled
from toolbox_operator.reconcile.relations import host_share
from toolbox_operator.reconcile.sources import RESOURCE_OF_SOURCE, Sources, SourceWatch
from toolbox_operator.reconcile.toolbox import ToolboxReconciler
from toolbox_operator.reconcile.usage import Accounting, UsageBook
from toolbox_operator.runtime import Clock, Settings
from toolbox_operator.store.api import Live, Record
from toolbox_operator.store.none import NoRecord
from toolbox_operator.store.sql import SqlStore

log = structlog.get_logger(__name__)

DRAIN = 20.0
"""Seconds that reconciles under way get when the process is asked to stop."""
FLUSH = 2.0
"""Seconds for Events, and for rows, that are queued then."""
EARLY_RELIST = 30.0
"""The second complete list, soon after the first: what vanished between a watch's start and our list shows there."""
RELIST_RETRY = 5.0
JUDGE_EVERY = 1.0
LABELS_WAIT = 10.0
"""Seconds that the start waits for the labels of namespaces; without them, what they decide stays as it is."""
STUCK = 2 * RECONCILE_DEADLINE

Build = Callable[[Context], Sequence[Reconciler]]
"""Makes the reconcilers; tests give others."""


def reconcilers(context: Context) -> Sequence[Reconciler]:
    """The three."""
    return ToolboxReconciler(context), MCPServerReconciler(context), ConnectionReconciler(context)


class WatchStale(Exception):
    """The watches no longer deliver: only a new process is sure to see the cluster again."""


class Leader:
    """Everything that only the leading process has. `run` returns when asked to stop, and raises when it must end."""

    def __init__(
        self,
        *,
        settings: Settings,
        login: Login,
        rest: KubeRest,
        elector: Elector,
        record: Record,
        metrics: Metrics,
        health: Health,
        build: Build,
        clock: Clock,
    ) -> None:
        timings = settings.timings
        self._timings = timings
        self._clock = clock
        self._elector = elector
        self._rest = rest
        self._record = record
        self._metrics = metrics
        self.cache = ObjectCache()
        self._secrets = SecretCache(self.cache)
        self._judge = WatchJudge(clock, fresh=timings.watch_fresh, missed=timings.watch_missed)
        write_deadline = timings.lease_duration - timings.lease_renew_deadline
        self.kube = KubeClient(rest, elector, written=self.cache.absorb, write_deadline=write_deadline)
        self.recorder = Recorder(self.kube, identity=settings.identity, clock=clock, dropped=metrics.event_dropped)
        self.queues = Queues(
            {
                kind: WorkQueue(
                    clock,
                    backoff_first=timings.backoff_first,
                    backoff_max=timings.backoff_max,
                    share_of=partial(host_share, self.cache, kind),
                    share_limit=settings.workers_per_host,
                )
                for kind in Kind
            }
        )
        usage = UsageBook(self.queues, clock, timings.usage_shown)
        self.hosts = Hosts(
            leadership=elector,
            queue=self.queues,
            clock=clock,
            timings=timings,
            connect=MeasuredHost.connect(elector, timings, metrics),
            calls=Accounting(record, usage, metrics),
        )
        self.cache.listen(usage.changed)
        index = Index()
        self.cache.listen(index.changed)
        self.cache.listen(FanOut(self.queues, index).changed)
        self._watches = Watches(login, self._take)
        labels, self._sources = NamespaceLabels(), Sources(self.queues, spread=timings.resync / 10)
        labels.listen(Relabelled(self.queues, self.cache, index).changed)
        self._namespaces = self._metadata_watch(NAMESPACES, labels, listing=True)
        self._source_watches = [
            self._metadata_watch(resource, SourceWatch(self._sources, source), listing=False)
            for source, resource in RESOURCE_OF_SOURCE.items()
        ]
        context = Context(
            kube=self.kube,
            cache=self.cache,
            index=index,
            labels=labels,
            sources=self._sources,
            hosts=self.hosts,
            store=record,
            usage=usage,
            events=self.recorder,
            leadership=elector,
            queue=self.queues,
            clock=clock,
            timings=timings,
            cluster_id=elector.owner,
        )
        self._controllers = [
            Controller(
                reconciler,
                self.queues[reconciler.kind],
                workers=settings.workers,
                clock=clock,
                metrics=metrics,
                leadership=elector,
            )
            for reconciler in build(context)
        ]
        self._sighted = asyncio.Event()
        self._started = False
        self._observe(health)

    def _metadata_watch(self, resource: Resource, audience: Audience, *, listing: bool) -> MetadataWatch:
        def heard(kind: str) -> None:
            self._metrics.watch_event(f"{kind} metadata")

        return MetadataWatch(self._rest, resource, audience, self._clock, listing=listing, heard=heard)

    def _observe(self, health: Health) -> None:
        """Let health and metrics see us."""
        health.liveness("watch", self._blind)
        health.liveness("reconciles", self._stuck)
        health.readiness("started", lambda: None if self._started else "the first complete list is not taken yet")
        cache = self.cache
        for kind in Kind:
            queue = self.queues[kind]
            self._metrics.watch_queue(
                kind,
                depth=queue.__len__,
                delayed=lambda queue=queue: queue.delayed,
                aside=lambda queue=queue: queue.aside,
                running=lambda queue=queue: queue.running,
            )
            self._metrics.watch_objects(kind, lambda kind=kind: cache.count(kind))
        self._metrics.watch_objects("Secret or ConfigMap", self._sources.__len__)
        self._metrics.watch_pulls(self._pulls)

    def _blind(self) -> str | None:
        """What is wrong with the watches that decisions depend on."""
        down = self._namespaces.down_for() if self._namespaces.begun.is_set() else 0.0
        if down > self._timings.watch_missed:
            return f"the watch of Namespaces has been down for {down:.0f} s"
        return self._judge.problem()

    def _pulls(self) -> Iterator[Pulled]:
        now = self._clock.monotonic()
        for key, pull in self.hosts.pulls().items():
            view = pull.view
            age = None if view.pulled is None else now - view.pulled
            yield Pulled(str(key), age, view.dropped, view.supported)

    def _stuck(self) -> str | None:
        oldest = max((controller.oldest() for controller in self._controllers), default=0.0)
        return f"a reconcile has been running for {oldest:.0f} s" if oldest > STUCK else None

    def _take(self, resource: Resource, type_: EventType, body: Body) -> None:
        """What a watch delivered."""
        self._metrics.watch_event(resource.kind)
        if resource is LEASES:
            metadata = body["metadata"]
            if (metadata["namespace"], metadata["name"]) == (self._elector.key.namespace, self._elector.key.name):
                self._judge.saw_lease()
                self._sighted.set()
        elif resource is SECRETS:
            connection = self._secrets.apply(type_, body)
            if connection is not None:
                self.queues.add(Kind.CONNECTION, connection)
        else:
            kind = Kind(resource.kind)
            self._judge.delivered(kind, type_, body)
            self.cache.apply(kind, type_, body)

    async def run(self, stop: asyncio.Event) -> None:
        """Lead until `stop` is set (then drain), or until something ends leadership or sight (then raise)."""
        watching = asyncio.create_task(self._watch(), name="watches")
        recording = asyncio.create_task(self.recorder.run(), name="events")
        working = asyncio.create_task(self._work(), name="workers")
        judging = asyncio.create_task(self._judge_health(), name="watch health")
        writing = asyncio.create_task(self._record.run(), name="record")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        metadata = [
            asyncio.create_task(watch.run(), name="metadata watch")
            for watch in (self._namespaces, *self._source_watches)
        ]
        vital: set[asyncio.Task[Any]] = {watching, recording, working, judging, writing, *metadata}
        try:
            await asyncio.wait({*vital, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in vital:
                if task.done():
                    task.result()
                    raise RuntimeError(f"{task.get_name()} ended")  # None of them ends by itself.
            await self._drain(working)
            await self.recorder.flush(FLUSH)
            if not await self._record.flush(FLUSH):
                log.warning("record not flushed; what is missing is derived again after the next start")
        finally:
            await end([working, judging, recording, writing, stopping, *metadata])
            await self.hosts.aclose()
            await self._watches.stop(watching)

    async def _watch(self) -> None:
        """kopf looks for the kinds once, at its start: it must not start before they are there."""
        missing = list(RESOURCE_OF.values())
        while missing:
            if await self._served(missing[-1]):
                missing.pop()
            else:
                await asyncio.sleep(RELIST_RETRY * random.uniform(0.8, 1.2))
        self._judge.start()
        await self._watches.run()

    async def _served(self, resource: Resource) -> bool:
        try:
            await self._rest.request("GET", collection_path(resource), deadline=READ_DEADLINE, query={"limit": "1"})
        except KubeError as error:
            log.warning("kind not served; are the CRDs installed?", kind=resource.kind, error=str(error))
            return False
        return True

    async def _work(self) -> None:
        """The start barrier, then workers and relists side by side."""
        # The watches are up before our list is taken, so that no change falls between the two.
        await self._sighted.wait()
        await self._relist_until_done()
        await self._labels_known()
        self._started = True
        log.info("started", **{kind.lower(): self.cache.count(kind) for kind in Kind})
        async with asyncio.TaskGroup() as group:
            relisting = group.create_task(self._relist_for_ever(), name="relist")
            workers = [group.create_task(controller.run()) for controller in self._controllers]
            await asyncio.wait(workers)
            relisting.cancel()

    async def _labels_known(self) -> None:
        """What labels decide would otherwise be undecided for a moment after every start."""
        try:
            async with asyncio.timeout(LABELS_WAIT):
                await self._namespaces.begun.wait()
        except TimeoutError:
            log.warning("starting without the labels of namespaces", cure="apply manifests/rbac again")

    async def _relist(self) -> float | None:
        """One complete list of every kind. The caches are as before when one could not be taken.

        Returns None, or for how many seconds the API server wants to be left alone then.
        """
        lists: dict[Kind, tuple[Sequence[Body], str]] = {}
        for kind, resource in RESOURCE_OF.items():
            try:
                lists[kind] = await self.kube.list(resource)
            except KubeError as error:
                log.warning("list failed", kind=str(kind), error=str(error))
                return error.retry_after or 0.0
        for kind, (bodies, version) in lists.items():
            accepted = self.cache.replace(kind, bodies, version)
            self._judge.listed(kind, bodies, version, accepted=accepted)
        # From the cache, which also has what came after the lists: a row written since must not be swept.
        self._record.sweep(live_of(self.cache))
        return None

    async def _relist_until_done(self) -> None:
        """Retry with jitter until every kind was listed."""
        while True:
            wanted = await self._relist()
            if wanted is None:
                return
            await asyncio.sleep(max(wanted, RELIST_RETRY * random.uniform(0.8, 1.2)))

    async def _relist_for_ever(self) -> None:
        await asyncio.sleep(min(EARLY_RELIST, self._timings.resync))
        await self._relist()
        while True:
            await asyncio.sleep(self._timings.resync * random.uniform(0.9, 1.1))
            await self._relist_until_done()
            spread = self._timings.resync / 10
            for kind in Kind:
                for key in self.cache.keys(kind):
                    self.queues.add_after(kind, key, random.uniform(0.0, spread))

    async def _judge_health(self) -> None:
        """Raises `WatchStale` once the watches no longer deliver."""
        while True:
            problem = self._blind()
            if problem is not None:
                raise WatchStale(problem)
            await asyncio.sleep(JUDGE_EVERY)

    async def _drain(self, working: asyncio.Task[None]) -> None:
        self.queues.close()
        if not self._started:
            return
        _, pending = await asyncio.wait({working}, timeout=DRAIN)
        if pending:
            log.warning("reconciles cancelled", after=DRAIN)


def live_of(cache: ObjectCache) -> Live:
    """Every id the cluster may know a row by. Too many are harmless, one too few closes a row."""
    return Live(
        toolboxes=frozenset(str(body["metadata"]["uid"]) for body in cache.all(Kind.TOOLBOX)),
        instances=frozenset(each for body in cache.all(Kind.MCP_SERVER) for each in instance_ids(body)),
        connections=frozenset(str(body["metadata"]["uid"]) for body in cache.all(Kind.CONNECTION)),
    )


async def end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what still runs and wait for it. Its errors are the caller's to ask for; here they are only logged."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("ended with an error", task=task.get_name(), error=repr(error))


def open_record(settings: Settings, elector: Elector, clock: Clock, metrics: Metrics) -> Record:
    """The record, if there is a database to keep it in. Doesn't connect yet."""
    if settings.database_url is None:
        return NoRecord(clock)
    return SqlStore(settings.database_url, elector.owner, elector, clock, registry=metrics.registry)

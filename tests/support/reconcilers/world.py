"""Reconcilers on fakes: cluster, hosts, record and clock in memory; real cache, queue and registry of hosts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

from support.conditions import check_conditions
from support.reconcilers.fakes import FakeEvents, FakeStore, Leading, ManualClock
from support.reconcilers.memory_host import FakeHost
from support.reconcilers.memory_kube import MemoryKube
from support.reconcilers.memory_machine import Machine
from toolbox_operator.api.meta import LABEL_CONNECTION, Body, Key, Kind
from toolbox_operator.hosts.api import HostSettings
from toolbox_operator.hosts.registry import Hosts
from toolbox_operator.kube.api import CONFIG_MAPS, RESOURCE_OF, SECRETS, Conflict, KubeError, Resource
from toolbox_operator.kube.cache import ObjectCache, SecretCache
from toolbox_operator.kube.labels import NamespaceLabels
from toolbox_operator.metrics import Metrics
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.errors import ReconcileError, Stalled, Waiting
from toolbox_operator.reconcile.fanout import FanOut
from toolbox_operator.reconcile.index import Index
from toolbox_operator.reconcile.queue import KeyQueue
from toolbox_operator.reconcile.relabelled import Relabelled
from toolbox_operator.reconcile.sources import RESOURCE_OF_SOURCE, Sources, SourceWatch
from toolbox_operator.reconcile.usage import Accounting, CallRecords, UsageBook
from toolbox_operator.runtime import Fenced, Timings
from toolbox_operator.store.none import NoRecord
from toolbox_operator.wiring import reconcilers

CLUSTER_ID = "7f8a1c58-6f0e-4b0e-9a57-2f0d4d6c1d11"
NS = "mcp-system"


class Crash(BaseException):
    """The process ends here."""


class FakeQueue:
    """Real queues on the fake clock, drained by `World.settle`."""

    def __init__(self, clock: ManualClock):
        self.clock = clock
        self.kinds = {kind: KeyQueue() for kind in Kind}

    def add(self, kind: Kind, key: Key) -> None:
        self.kinds[kind].add(key)

    def add_after(self, kind: Kind, key: Key, seconds: float) -> None:
        self.kinds[kind].add_at(key, self.clock.monotonic() + seconds)


class World:
    """One operator process, replaceable (`restart`), on a cluster and machines that outlive it."""

    def __init__(self, database: CallRecords | None = None) -> None:
        self.clock = ManualClock(seconds=0.0, epoch=datetime(2026, 6, 1, 12, tzinfo=UTC))
        self.kube = MemoryKube(self._written)
        self.machines: dict[str, Machine] = {}
        self.store = FakeStore()
        self.database = database
        """Where call records go, also those of the next process; None: the operator has no record."""
        self.metrics = Metrics()
        self.events = FakeEvents()
        self.leadership = Leading(owner=CLUSTER_ID, epoch=3)
        self.errors: dict[tuple[Kind, Key], BaseException] = {}
        self.passes = 0
        self.watching_sources = True
        """Whether the watches of Secrets and ConfigMaps deliver."""
        self._watching = True
        """Whether the watches of our own kinds deliver."""
        self.namespaces: dict[str, dict[str, str]] | None = {NS: {}}
        """Labels by namespace, for this process and the next; None: the watch of namespaces has not begun."""
        self._begin()

    def _begin(self) -> None:
        self.cache = ObjectCache()
        self.secrets = SecretCache(self.cache)
        self.queue = FakeQueue(self.clock)
        usage = UsageBook(self.queue, self.clock, TIMINGS.usage_shown)
        self.hosts = Hosts(
            leadership=self.leadership,
            queue=self.queue,
            clock=self.clock,
            timings=TIMINGS,
            connect=self._connect,
            calls=Accounting(self.database or NoRecord(self.clock), usage, self.metrics),
        )
        self.cache.listen(usage.changed)
        index = Index()
        self.cache.listen(index.changed)
        self.cache.listen(FanOut(self.queue, index).changed)
        self.labels = NamespaceLabels()
        self.labels.listen(Relabelled(self.queue, self.cache, index).changed)
        if self.namespaces is not None:
            self.labels.begun([namespace_body(name, labels) for name, labels in self.namespaces.items()])
        self.sources = Sources(self.queue, spread=TIMINGS.resync / 10)
        self.source_watches = {
            resource.plural: SourceWatch(self.sources, source) for source, resource in RESOURCE_OF_SOURCE.items()
        }
        self.context = Context(
            kube=self.kube,
            cache=self.cache,
            index=index,
            labels=self.labels,
            sources=self.sources,
            hosts=self.hosts,
            store=self.store,
            usage=usage,
            events=self.events,
            leadership=self.leadership,
            queue=self.queue,
            clock=self.clock,
            timings=TIMINGS,
            cluster_id=CLUSTER_ID,
        )
        self.reconcilers = {reconciler.kind: reconciler for reconciler in reconcilers(self.context)}
        for (plural, _), body in list(self.kube.objects.items()):
            for kind, resource in RESOURCE_OF.items():
                if resource.plural == plural:
                    self.cache.apply(kind, "ADDED", body)

    async def restart(self) -> None:
        """The process ends and another one begins."""
        await self.hosts.aclose()
        self._begin()

    async def aclose(self) -> None:
        await self.hosts.aclose()

    def _connect(self, settings: HostSettings) -> FakeHost:
        return FakeHost(self.machines[settings.endpoint], self.leadership, settings)

    def _written(self, resource: Resource, body: Body, gone: bool) -> None:
        for kind, known in RESOURCE_OF.items():
            if self._watching and known.plural == resource.plural:
                self.cache.apply(kind, "DELETED" if gone else "MODIFIED", body)
                if not gone:
                    check_conditions(body)
        if resource.plural == SECRETS.plural and LABEL_CONNECTION in (body["metadata"].get("labels") or {}):
            key = self.secrets.apply("DELETED" if gone else "MODIFIED", body)
            if key is not None:
                self.queue.add(Kind.CONNECTION, key)
        if self.watching_sources and (watch := self.source_watches.get(resource.plural)) is not None:
            watch.changed("DELETED" if gone else "MODIFIED", {"metadata": body["metadata"]})

    # ---- running
    async def settle(self, *, limit: int = 500) -> None:
        """Reconcile until nothing is due and no host has anything to say."""
        for _ in range(limit):
            await self._let_hosts_speak()
            if not await self._pass():
                await self._let_hosts_speak()
                if not self._due():
                    return
        raise AssertionError(f"still not settled after {limit} passes; last errors: {self.errors}")

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
        """Settle again and again, in real time, until something is the case."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self.settle()
                    if condition():
                        return
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{what}: not within {seconds} s; errors: {self.errors}") from None

    async def pull(self, toolbox: Key) -> float:
        """Pull call records of a Toolbox's host once, then settle; the seconds until it would be done again."""
        pause = await self.hosts.pulls()[toolbox].step()
        await self.settle()
        return pause

    async def advance(self, seconds: float) -> None:
        """Let time pass, then settle."""
        self.clock.advance(seconds)
        await self.settle()

    async def _let_hosts_speak(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    def _due(self) -> bool:
        now = self.clock.monotonic()
        return any(len(q) or ((due := q.next_due()) is not None and due <= now) for q in self.queue.kinds.values())

    async def _pass(self) -> bool:
        any_ = False
        for kind, queue in self.queue.kinds.items():
            while (key := queue.pop(self.clock.monotonic())) is not None:
                any_ = True
                self.passes += 1
                try:
                    await self._one(kind, key, queue)
                finally:
                    queue.done(key)
        return any_

    async def _one(self, kind: Kind, key: Key, queue: KeyQueue) -> None:
        now = self.clock.monotonic()
        self.errors.pop((kind, key), None)
        try:
            outcome = await self.reconcilers[kind].reconcile(key)
        except (Crash, Fenced, asyncio.CancelledError):
            raise
        except Waiting as error:
            self.errors[(kind, key)] = error
            queue.add_at(key, now + (error.after or 1.0))
        except Stalled as error:
            self.errors[(kind, key)] = error
        except Conflict:
            queue.add_at(key, now)
        except (ReconcileError, KubeError) as error:
            self.errors[(kind, key)] = error
            queue.add_at(key, now + 1.0)
        else:
            if outcome.requeue_after is not None:
                queue.add_at(key, now + outcome.requeue_after)

    # ---- objects
    def machine(self, endpoint: str = "https://10.0.0.1:30000") -> Machine:
        """The machine at an endpoint."""
        return self.machines.setdefault(endpoint, Machine())

    def toolbox(self, name: str = "tbx-1", *, endpoint: str = "https://10.0.0.1:30000", **spec: Any) -> Key:
        """Apply a Toolbox with its Secret."""
        self.machine(endpoint)
        self.secret(f"{name}-dtma", token="t" * 40)
        body = {
            "endpoint": endpoint,
            "gatewayURL": f"https://{name}.example.com:30443",
            "authSecretRef": {"name": f"{name}-dtma", "key": "token"},
            **spec,
        }
        return self.apply(Kind.TOOLBOX, name, body)

    def server(self, name: str = "time", namespace: str = NS, *, annotations: Any = None, **spec: Any) -> Key:
        """Apply an MCPServer; a field that is None is left out."""
        body = {
            "toolboxRef": {"name": "tbx-1", "namespace": NS},
            "image": "registry.example.com/mcp-time:1.4",
            "transport": "streamable-http",
            "port": 3001,
            **spec,
        }
        body = {field: value for field, value in body.items() if value is not None}
        return self.apply(Kind.MCP_SERVER, name, body, namespace, annotations)

    def stdio_server(self, name: str = "time", **spec: Any) -> Key:
        """Apply an MCPServer that speaks stdio."""
        return self.server(name, transport="stdio", port=None, **spec)

    def connection(self, name: str = "bot-time", namespace: str = NS, *, annotations: Any = None, **spec: Any) -> Key:
        """Apply an AgentMCPConnection."""
        body = {"agent": {"name": "research-bot"}, "serverRef": {"name": "time", "namespace": NS}, **spec}
        return self.apply(Kind.CONNECTION, name, body, namespace, annotations)

    async def deployed(self) -> tuple[Key, Key]:
        """A Toolbox and a server on it that is Ready."""
        toolbox, server = self.toolbox(), self.server()
        await self.settle()
        assert self.ready(Kind.MCP_SERVER, server) == ("True", "Ready")
        return toolbox, server

    @contextmanager
    def unseen(self) -> Generator[None]:
        """No watch of our own kinds delivers what is done meanwhile."""
        self._watching = False
        try:
            yield
        finally:
            self._watching = True

    def apply(self, kind: Kind, name: str, spec: dict[str, Any], namespace: str = NS, annotations: Any = None) -> Key:
        """`kubectl apply`."""
        meta: dict[str, Any] = {"namespace": namespace, "name": name}
        if annotations is not None:
            meta["annotations"] = annotations
        self.kube.apply(RESOURCE_OF[kind], {"metadata": meta, "spec": spec})
        return Key(namespace, name)

    def patch(self, kind: Kind, key: Key, **spec: Any) -> None:
        """`kubectl patch` of the spec."""
        self.kube.edit(RESOURCE_OF[kind], key, {"spec": spec})

    def annotate(self, kind: Kind, key: Key, name: str, value: str | None) -> None:
        """`kubectl annotate`."""
        self.kube.edit(RESOURCE_OF[kind], key, {"metadata": {"annotations": {name: value}}})

    def delete(self, kind: Kind, key: Key) -> None:
        """`kubectl delete`."""
        self.kube.remove(RESOURCE_OF[kind], key)

    def secret(self, name: str, namespace: str = NS, **data: str) -> Key:
        """Apply a Secret."""
        encoded = {key.replace("_dot_", "."): base64.b64encode(value.encode()).decode() for key, value in data.items()}
        self.kube.apply(SECRETS, {"metadata": {"namespace": namespace, "name": name}, "data": encoded})
        return Key(namespace, name)

    def config_map(self, name: str, namespace: str = NS, **data: str) -> Key:
        """Apply a ConfigMap."""
        self.kube.apply(CONFIG_MAPS, {"metadata": {"namespace": namespace, "name": name}, "data": data})
        return Key(namespace, name)

    def namespace(self, name: str, **labels: str) -> None:
        """Create a namespace, or give it these labels instead of those it has."""
        if self.namespaces is not None:
            self.namespaces[name] = labels
        self.labels.changed("MODIFIED", namespace_body(name, labels))

    def body(self, kind: Kind, key: Key) -> dict[str, Any]:
        """The object."""
        body = self.kube.peek(RESOURCE_OF[kind], key)
        assert body is not None, f"{kind} {key} is gone"
        return body

    def exists(self, kind: Kind, key: Key) -> bool:
        """Whether the object is there."""
        return self.kube.peek(RESOURCE_OF[kind], key) is not None

    def status(self, kind: Kind, key: Key) -> dict[str, Any]:
        """Its status."""
        return self.body(kind, key).get("status") or {}

    def condition(self, kind: Kind, key: Key, type_: str) -> tuple[str, str]:
        """(status, reason) of a condition; ("", "") when it is not there."""
        for condition in self.status(kind, key).get("conditions", ()):
            if condition["type"] == type_:
                return condition["status"], condition["reason"]
        return "", ""

    def ready(self, kind: Kind, key: Key) -> tuple[str, str]:
        """(status, reason) of Ready."""
        return self.condition(kind, key, "Ready")


def namespace_body(name: str, labels: dict[str, str]) -> Body:
    """The metadata of a namespace as its watch delivers it."""
    return {"metadata": {"name": name, "labels": labels}}


TIMINGS = Timings(backoff_first=0.01, backoff_max=0.05, calls_active=1e5, calls_idle=1e5)
"""Call records are pulled when a test says so."""


@asynccontextmanager
async def world(*, database: CallRecords | None = None) -> AsyncGenerator[World]:
    """A world that is closed at the end."""
    made = World(database)
    try:
        yield made
    finally:
        await made.aclose()

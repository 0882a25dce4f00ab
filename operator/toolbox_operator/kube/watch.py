"""kopf as informer: it watches, we are told. In a thread and loop of its own.

When kopf ends it cancels every task of its loop that it doesn't know, and it would take the process's signals;
neither can reach us here. Handlers do nothing but hand the event over.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, cast

import kopf
import structlog

from toolbox_operator.api.meta import GROUP, LABEL_CONNECTION, Body
from toolbox_operator.kube.api import CONNECTIONS, LEASES, MCP_SERVERS, SECRETS, TOOLBOXES, Resource
from toolbox_operator.kube.cache import EventType
from toolbox_operator.kube.elector import LABEL_LEASE
from toolbox_operator.kube.login import Login

log = structlog.get_logger(__name__)

WATCHED = {resource.plural: resource for resource in (TOOLBOXES, MCP_SERVERS, CONNECTIONS, SECRETS, LEASES)}
STOP_DEADLINE = 8.0
"""kopf gives its own tasks up to 7 s."""

GOODBYE = 0.1

Sink = Callable[[Resource, EventType, Body], None]


class WatchEnded(Exception):
    """kopf ended though nobody asked it to: without watches this process is blind."""


@dataclass(frozen=True, slots=True)
class Feed:
    """kopf's memo: where handlers put events. One for all objects, hence never copied."""

    sink: Sink
    loop: asyncio.AbstractEventLoop

    def __copy__(self) -> Self:
        return self

    def put(self, resource: Resource, type_: EventType, body: Body) -> None:
        """Hand over to the operator's loop, in order."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.sink, resource, type_, body)


def configure(login: Login) -> tuple[kopf.OperatorRegistry, kopf.OperatorSettings]:
    """Everything kopf is told: handlers, login, settings."""
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.peering.standalone = True
    # Not our own finalizer: kopf strips the one named here from objects that no handler of its own needs it for.
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP, v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP, v1=False)
    settings.queueing.exit_timeout = 2.0
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 5
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 5
    settings.watching.chunk_size = 500
    settings.watching.label_selectors[SECRETS.version, SECRETS.plural] = LABEL_CONNECTION
    settings.watching.label_selectors[LEASES.group, LEASES.version, LEASES.plural] = LABEL_LEASE
    settings.scanning.disabled = True
    settings.execution.max_workers = 1

    @kopf.on.login(registry=registry, id="login")
    async def authenticate(**_: Any) -> kopf.ConnectionInfo:
        return await login.kopf_connection()

    async def hand_over(*, event: kopf.RawEvent, resource: kopf.Resource, memo: Any, **_: Any) -> None:
        feed: Feed = memo
        type_ = event["type"]
        # kopf itself keeps bookmarks back; its types don't say so.
        if type_ != "BOOKMARK":
            feed.put(WATCHED[resource.plural], type_, cast("Body", event["object"]))

    for resource in WATCHED.values():
        kopf.on.event(
            resource.group, resource.version, resource.plural, registry=registry, id=f"feed-{resource.plural}"
        )(hand_over)
    return registry, settings


class Watches:
    """The running watches. `run` until stopped; every event of every watched kind goes to `sink`, in this loop."""

    def __init__(self, login: Login, sink: Sink) -> None:
        self._login = login
        self._sink = sink
        self._running = False
        self._stopping = False
        self._kopf: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def run(self) -> None:
        """Returns after `stop`. Raises `WatchEnded`, or what ended kopf, otherwise."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        feed = Feed(self._sink, loop)

        def settle(error: BaseException | None) -> None:
            if ended.done():
                return
            if error is not None:
                ended.set_exception(error)
            elif self._stopping:
                ended.set_result(None)
            else:
                ended.set_exception(WatchEnded("the watches ended by themselves"))

        def work() -> None:
            problem: BaseException | None = None
            try:
                asyncio.run(self._operate(feed))
            except BaseException as error:  # The boundary of the thread: it goes to the waiting task.
                problem = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, problem)

        # A daemon, so that a hanging kopf cannot keep a process that wants to end.
        thread = threading.Thread(target=work, name="kopf", daemon=True)
        thread.start()
        self._running = True
        try:
            await ended
        finally:
            self._ask_to_stop()

    async def stop(self, task: asyncio.Task[None]) -> None:
        """End `task`, which runs `run` or is about to: gracefully within a deadline."""
        self._ask_to_stop()
        if not self._running:
            task.cancel()
        _, pending = await asyncio.wait({task}, timeout=STOP_DEADLINE)
        if pending:
            log.warning("the watches did not stop in time")
            task.cancel()
            await asyncio.wait({task})

    def _ask_to_stop(self) -> None:
        self._stopping = True
        if self._kopf is not None:
            loop, flag = self._kopf
            if not loop.is_closed():
                loop.call_soon_threadsafe(flag.set)

    async def _operate(self, feed: Feed) -> None:
        # Not a threading.Event: kopf would wait for it in a thread that outlives its own failure.
        flag = asyncio.Event()
        self._kopf = asyncio.get_running_loop(), flag
        if self._stopping:
            return
        registry, settings = configure(self._login)
        try:
            await kopf.operator(registry=registry, settings=settings, memo=feed, clusterwide=True, stop_flag=flag)
        finally:
            # kopf closes its connections without waiting; TLS needs a few turns of the loop to say goodbye.
            await asyncio.sleep(GOODBYE)

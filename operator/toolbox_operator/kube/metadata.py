"""Watches of metadata alone (ADR 0019): what objects hold never leaves the API server.

Kubernetes gives any kind as `PartialObjectMetadata` to whoever asks for it (API concepts, "Metadata-only fetches").
kopf cannot ask for it, and would keep a worker and a body for each object; so these watches are our own.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import structlog

from toolbox_operator.api.meta import Body
from toolbox_operator.kube.api import KubeError, Resource
from toolbox_operator.kube.cache import EventType
from toolbox_operator.kube.client import CHUNK, LIST_DEADLINE, RELISTS
from toolbox_operator.kube.rest import KubeRest, collection_path
from toolbox_operator.runtime import Clock

log = structlog.get_logger(__name__)

OBJECT = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

OPEN_DEADLINE = 15.0
"""Seconds for the head of a watch's answer."""
SERVER_TIMEOUT = 300
"""Seconds after which the API server ends a watch in good order."""
SILENCE = 70.0
"""Bookmarks come about once a minute: after so many seconds without a line the watch is opened again, where it was."""
BRIEF = 1.0
"""A watch that ended sooner counts as failed: opening it again at once would be a storm."""
RETRY_FIRST, RETRY_MAX = 0.5, 30.0
GONE = 410


class Audience(Protocol):
    """Who is told what a watch sees. Called in the loop of the watch; must not wait for anything."""

    def begun(self, bodies: Sequence[Body]) -> None:
        """The watch begins, or begins anew after a gap in which changes may have been missed.

        `bodies`: the metadata of every object, if the watch lists them; else none, and that says nothing.
        """
        ...

    def changed(self, type_: EventType, body: Body) -> None:
        """An object was added, modified or deleted; `body` is its metadata."""
        ...


class MetadataWatch:
    """One kind, in all namespaces. `run` never returns; failures are tried again, and told by `problem`.

    `listing`: each beginning lists all objects. Without, it only asks for the version to begin at: that costs nothing
    where there are very many objects and few matter.
    """

    def __init__(
        self,
        rest: KubeRest,
        resource: Resource,
        audience: Audience,
        clock: Clock,
        *,
        listing: bool,
        heard: Callable[[str], None] = lambda _: None,
        silence: float = SILENCE,
        rng: random.Random | None = None,
    ) -> None:
        self._rest = rest
        self._resource = resource
        self._audience = audience
        self._clock = clock
        self._listing = listing
        self._heard = heard
        self._silence = silence
        # Jitter needs no secrecy.
        self._rng = rng or random.Random()
        self._version: str | None = None
        """Where the watch goes on; None: it has to begin anew."""
        self._newest = 0
        self._pause = RETRY_FIRST
        self._down_since: float | None = None
        self._opened: float | None = None
        self.begun = asyncio.Event()
        """Set once it has begun for the first time."""

    def down_for(self) -> float:
        """For how many seconds it has been known not to deliver; 0 while it does."""
        return 0.0 if self._down_since is None else self._clock.monotonic() - self._down_since

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._opened = None
            error: KubeError | None = None
            try:
                if self._version is None:
                    await self._begin()
                await self._listen()
            except KubeError as failure:
                error = failure
                self._failed(failure)
            if self._opened is not None and self._clock.monotonic() - self._opened >= BRIEF:
                self._pause = RETRY_FIRST
                if error is None:
                    continue
            wanted = error.retry_after if error is not None else None
            await asyncio.sleep(max(wanted or 0.0, self._pause * self._rng.uniform(0.5, 1.0)))
            self._pause = min(RETRY_MAX, 2 * self._pause)

    def _failed(self, error: KubeError) -> None:
        if error.status == GONE and self._version is not None:
            # In good order: what happened since is no longer kept.
            self._version = None
        elif self._down_since is None:
            self._down_since = self._clock.monotonic()
            cure = "apply manifests/rbac again" if error.status == 403 else "it is tried again"
            log.warning("watch of metadata failed", kind=self._resource.kind, error=str(error), cure=cure)

    def _alive(self) -> None:
        self._opened = self._clock.monotonic()
        if self._down_since is not None:
            log.info("watch of metadata goes on", kind=self._resource.kind, after=round(self.down_for(), 1))
            self._down_since = None

    async def _begin(self) -> None:
        bodies, version = await self._list_all() if self._listing else await self._list_none()
        if int(version) < self._newest:
            # A server that lags behind, or a restored one: what it lacks proves nothing.
            raise KubeError(200, f"list of {self._resource.plural}: the answer is older than one before")
        self._seen(version)
        self._audience.begun(bodies)
        self.begun.set()

    async def _list_none(self) -> tuple[Sequence[Body], str]:
        page = await self._page({"limit": "1"})
        return (), cast("str", page["metadata"]["resourceVersion"])

    async def _list_all(self) -> tuple[Sequence[Body], str]:
        for _ in range(RELISTS):
            bodies: list[Body] = []
            query, version = {"limit": str(CHUNK)}, ""
            try:
                while True:
                    page = await self._page(query)
                    bodies.extend(_trimmed(item) for item in page["items"] or ())
                    version = version or page["metadata"]["resourceVersion"]
                    if not page["metadata"].get("continue"):
                        return bodies, version
                    query["continue"] = page["metadata"]["continue"]
            except KubeError as error:
                if error.status != GONE:
                    raise
        raise KubeError(GONE, f"list of {self._resource.plural}: the snapshot expired {RELISTS} times while reading it")

    async def _page(self, query: dict[str, str]) -> dict[str, Any]:
        path = collection_path(self._resource)
        page = await self._rest.request("GET", path, deadline=LIST_DEADLINE, query=query, accept=LIST)
        # Of no object at all the API server's list of metadata is null.
        items, metadata = page.get("items", ()), page.get("metadata")
        whole = items is None or isinstance(items, list)
        if not whole or not isinstance(metadata, dict) or "resourceVersion" not in metadata:
            raise KubeError(200, f"list of {self._resource.plural}: the answer is not a complete list")
        return page

    async def _listen(self) -> None:
        """Take events until the API server ends the watch. Raises `KubeError`, with 410 when it must begin anew."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(SERVER_TIMEOUT - self._rng.randrange(SERVER_TIMEOUT // 5)),
        }
        stream = self._rest.lines(
            collection_path(self._resource), query=query, deadline=OPEN_DEADLINE, silence=self._silence, accept=OBJECT
        )
        async with stream as lines:
            self._alive()
            async for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event: Any = json.loads(line)
            type_, body = event["type"], event["object"]
            if type_ == "ERROR":
                raise KubeError(
                    int(body.get("code", 0)), f"watch of {self._resource.plural}: {body.get('message', '')}"
                )
            self._seen(body["metadata"]["resourceVersion"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KubeError(200, f"watch of {self._resource.plural}: a line is no event") from error
        if type_ != "BOOKMARK":
            self._heard(self._resource.kind)
            self._audience.changed(type_, body)

    def _seen(self, version: str) -> None:
        self._newest = max(self._newest, int(version))
        self._version = version


def _trimmed(body: Body) -> Body:
    """What anybody asks of a listed object: annotations and managedFields can be a hundred times as large."""
    metadata = body["metadata"]
    return {"metadata": {name: metadata[name] for name in ("name", "namespace", "labels") if name in metadata}}

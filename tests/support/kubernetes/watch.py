"""Watches of the Kubernetes API in a thread, for measurements that must see a change at the moment it arrives."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from localstack.kubernetes import Cluster, Manifest
from support.kubernetes.api import Access, KubeApi


class KeptApi(KubeApi):
    """The same over one connection that is kept; not for use by several threads."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(Access.read(cluster.admin_kubeconfig))
        self._connection = self.connect()

    def raw(self, method: str, path: str, body: object = None, *, content_type: str = "application/json") -> bytes:
        """The answer's body as it is. Raises `ApiRefused`."""
        return self.over(self._connection, method, path, body, content_type)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    @contextmanager
    def watch(self, path: str) -> Generator[Watch]:
        """Watches a collection from now on, in a thread."""
        version = self.request("GET", path)["metadata"]["resourceVersion"]
        connection = self.connect(seconds=3600.0)
        connection.request("GET", f"{path}?watch=1&resourceVersion={version}", headers=self.headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        watch = Watch()
        thread = threading.Thread(target=watch.read, args=(answer,), name="watch", daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            watch.closing = True
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=10)
            connection.close()


@dataclass(frozen=True, slots=True)
class Seen:
    """One event of a watch."""

    at: float
    """`time.monotonic()` at its arrival."""
    type: str
    body: Manifest


class Watch:
    """Everything that a watch delivered, by the name of the object."""

    def __init__(self) -> None:
        self._events: dict[str, list[Seen]] = {}
        self._news = threading.Condition()
        self._ended: str | None = None
        self.closing = False

    def read(self, stream: http.client.HTTPResponse) -> None:
        """Takes events until the stream ends."""
        why = "the watch ended"
        try:
            while line := stream.readline():
                at = time.monotonic()
                event: dict[str, Any] = json.loads(line)
                seen = Seen(at, event["type"], event["object"])
                with self._news:
                    self._events.setdefault(seen.body["metadata"]["name"], []).append(seen)
                    self._news.notify_all()
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = f"the watch broke: {error!r}"
        if not self.closing:
            with self._news:
                self._ended = why
                self._news.notify_all()

    def first(self, name: str, good: Callable[[Seen], bool], *, after: float = 0.0, seconds: float = 60.0) -> Seen:
        """The first event about an object that arrived after a moment and is `good`, waited for if need be."""

        def find() -> Seen | None:
            events = self._events.get(name, [])
            return next((event for event in events if event.at >= after and good(event)), None)

        deadline = time.monotonic() + seconds
        with self._news:
            while (found := find()) is None:
                assert self._ended is None, self._ended
                left = deadline - time.monotonic()
                assert left > 0, f"nothing fitting about {name} within {seconds:.0f}s; last: {self._last(name)}"
                self._news.wait(left)
            return found

    def _last(self, name: str) -> Manifest | None:
        events = self._events.get(name)
        return events[-1].body.get("status") if events else None


def condition(body: Manifest, type_: str) -> Manifest:
    """A condition by its type; empty while it is not there."""
    status = cast("Manifest", body.get("status") or {})
    conditions = cast("list[Manifest]", status.get("conditions") or [])
    absent: Manifest = {}
    return next((item for item in conditions if item["type"] == type_), absent)


def is_ready(seen: Seen) -> bool:
    """Whether the object is Ready in its present generation."""
    ready = condition(seen.body, "Ready")
    current = ready.get("observedGeneration") == seen.body["metadata"]["generation"]
    return seen.type != "DELETED" and current and ready["status"] == "True"


def is_gone(seen: Seen) -> bool:
    """Whether the object was deleted."""
    return seen.type == "DELETED"

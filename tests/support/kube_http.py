"""A local cluster's API without kubectl, whose start takes longer than what is measured: requests, and watches."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

from localstack.kubernetes import Cluster, Manifest

GROUP_PATH = "/apis/magictoolbox.dev/v1alpha1"
MERGE_PATCH = "application/merge-patch+json"


def collection(plural: str, namespace: str) -> str:
    """The path of our objects of one kind in a namespace."""
    return f"{GROUP_PATH}/namespaces/{namespace}/{plural}"


class KubeHttp:
    """An admin's requests over one connection; not for use by several threads."""

    def __init__(self, cluster: Cluster) -> None:
        config: dict[str, Any] = yaml.safe_load(cluster.admin_kubeconfig.read_text())
        found, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._address = urlsplit(str(found["server"])).netloc
        authority = base64.b64decode(found["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        self._headers = {"Authorization": f"Bearer {user['token']}"}
        self._connection = self._connect()

    def _connect(self, seconds: float = 30.0) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._address, context=self._context, timeout=seconds)

    def text(self, method: str, path: str, body: object = None, *, content_type: str = "application/json") -> str:
        """The text of a 2xx answer; anything else is an `AssertionError`."""
        payload = None if body is None else json.dumps(body)
        headers = {**self._headers, "Content-Type": content_type}
        self._connection.request(method, path, payload, headers)
        answer = self._connection.getresponse()
        text = answer.read().decode()
        assert 200 <= answer.status < 300, f"{method} {path}: {answer.status} {text}"
        return text

    def create(self, path: str, body: Manifest) -> Manifest:
        """Creates an object in a collection."""
        return json.loads(self.text("POST", path, body))

    def patch(self, path: str, patch: Manifest) -> Manifest:
        """A merge patch."""
        return json.loads(self.text("PATCH", path, patch, content_type=MERGE_PATCH))

    def get(self, path: str) -> Manifest:
        """An object, or a list."""
        return json.loads(self.text("GET", path))

    def delete(self, path: str) -> None:
        """Begins a deletion; finalizers may keep the object for a while."""
        self.text("DELETE", path)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    @contextmanager
    def watch(self, path: str) -> Generator[Watch]:
        """Watches a collection from now on, in a thread."""
        version = self.get(path)["metadata"]["resourceVersion"]
        connection = self._connect(seconds=3600.0)
        connection.request("GET", f"{path}?watch=1&resourceVersion={version}", headers=self._headers)
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

"""What the watches have seen: raw bodies per kind, never older after newer.

Fed by kopf's watches, by our own complete lists and by the answers to our own writes. resourceVersions are
compared as integers, which etcd-backed API servers give and Kubernetes guarantees from 1.35.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from toolbox_operator.api.meta import LABEL_CONNECTION, Body, Key, Kind
from toolbox_operator.kube.api import RESOURCE_OF, Resource
from toolbox_operator.kube.client import slim

EventType = Literal["ADDED", "MODIFIED", "DELETED"] | None
"""As a watch gives it; None for an object of a watch's initial list."""

OnChange = Callable[[Kind, Key, Body | None, Body | None], None]
"""(kind, key, old, new); `new` None: gone."""


def version_of(body: Body) -> int:
    """The body's resourceVersion as a number."""
    return int(body["metadata"]["resourceVersion"])


class Shelf:
    """The objects of one kind."""

    def __init__(self) -> None:
        self._bodies: dict[Key, Body] = {}
        self._deleted: dict[Key, int] = {}
        """Versions at which keys vanished: a list taken before must not bring them back."""
        self._listed = 0

    def get(self, key: Key) -> Body | None:
        return self._bodies.get(key)

    def all(self) -> Sequence[Body]:
        return list(self._bodies.values())

    def keys(self) -> list[Key]:
        return list(self._bodies)

    def put(self, body: Body) -> tuple[bool, Body | None]:
        """Take a body unless something newer is known. Returns whether it was taken, and what it replaced."""
        key, version = Key.of(body), version_of(body)
        old = self._bodies.get(key)
        known = max(version_of(old) if old else 0, self._deleted.get(key, 0))
        if version <= known:
            return False, old
        self._deleted.pop(key, None)
        self._bodies[key] = body
        return True, old

    def drop(self, body: Body) -> tuple[bool, Body | None]:
        """The object vanished at this body's version, unless something newer is known."""
        key, version = Key.of(body), version_of(body)
        old = self._bodies.get(key)
        if old is not None and version_of(old) > version:
            return False, old
        self._deleted[key] = max(version, self._deleted.get(key, 0))
        self._bodies.pop(key, None)
        return old is not None, old

    def replace(self, bodies: Sequence[Body], listed: int) -> list[tuple[Key, Body | None, Body | None]] | None:
        """Make this the whole truth as of version `listed`, keeping what is known to be newer.

        Returns the changes; None when an earlier list was newer: what a lagging server lacks proves nothing.
        """
        if listed < self._listed:
            return None
        changes: list[tuple[Key, Body | None, Body | None]] = []
        present: set[Key] = set()
        for body in bodies:
            present.add(Key.of(body))
            taken, old = self.put(body)
            if taken:
                changes.append((Key.of(body), old, body))
        for key, old in list(self._bodies.items()):
            if key not in present and version_of(old) <= listed:
                del self._bodies[key]
                self._deleted[key] = listed
                changes.append((key, old, None))
        self._listed = listed
        self._deleted = {key: version for key, version in self._deleted.items() if version >= listed}
        return changes


class ObjectCache:
    """The three kinds, with listeners told after each change."""

    def __init__(self) -> None:
        self._shelves = {kind: Shelf() for kind in Kind}
        self._listeners: list[OnChange] = []

    def listen(self, listener: OnChange) -> None:
        """Have `listener` called, synchronously, for every change from now on."""
        self._listeners.append(listener)

    def get(self, kind: Kind, key: Key) -> Body | None:
        return self._shelves[kind].get(key)

    def all(self, kind: Kind) -> Sequence[Body]:
        return self._shelves[kind].all()

    def keys(self, kind: Kind) -> list[Key]:
        """The keys of every object of the kind."""
        return self._shelves[kind].keys()

    def count(self, kind: Kind) -> int:
        """How many objects of the kind there are."""
        return len(self._shelves[kind].keys())

    def apply(self, kind: Kind, type_: EventType, body: Body) -> bool:
        """Take a watch event. Returns whether anything changed."""
        body = slim(body, RESOURCE_OF[kind])
        shelf = self._shelves[kind]
        changed, old = shelf.drop(body) if type_ == "DELETED" else shelf.put(body)
        if changed:
            self._tell(kind, Key.of(body), old, None if type_ == "DELETED" else body)
        return changed

    def replace(self, kind: Kind, bodies: Sequence[Body], version: str) -> bool:
        """Take a complete list: what it lacks is gone. `version` is the list's resourceVersion.

        False when the list is older than one taken before; nothing is changed then.
        """
        changes = self._shelves[kind].replace(bodies, int(version))
        for key, old, new in changes or ():
            self._tell(kind, key, old, new)
        return changes is not None

    def absorb(self, resource: Resource, body: Body) -> None:
        """Take what the API server answered, unless something newer was seen.

        After our own writes, so that the next reconcile doesn't decide on what was before.
        """
        for kind, known in RESOURCE_OF.items():
            if known is resource:
                self.apply(kind, "MODIFIED", body)

    def _tell(self, kind: Kind, key: Key, old: Body | None, new: Body | None) -> None:
        for listener in self._listeners:
            listener(kind, key, old, new)


class SecretCache:
    """Which connection a labelled Secret belongs to. Holds no data of Secrets."""

    def __init__(self, connections: ObjectCache) -> None:
        self._connections = connections
        self._versions: dict[Key, int] = {}

    def apply(self, type_: EventType, body: Body) -> Key | None:
        """Take a watch event of a labelled Secret; the key of the connection it concerns, when it is news."""
        key, version = Key.of(body), version_of(body)
        if type_ == "DELETED":
            self._versions.pop(key, None)
        elif self._versions.get(key, 0) >= version:
            return None
        else:
            self._versions[key] = version
        return self._connection_of(body)

    def _connection_of(self, body: Body) -> Key | None:
        metadata = body["metadata"]
        for owner in metadata.get("ownerReferences", ()):
            if owner.get("kind") == Kind.CONNECTION:
                return Key(metadata["namespace"], owner["name"])
        # The reference was stripped; the label still says whose it is.
        labels: dict[str, str] = metadata.get("labels") or {}
        uid = labels.get(LABEL_CONNECTION)
        for connection in self._connections.all(Kind.CONNECTION):
            if connection["metadata"]["uid"] == uid:
                return Key.of(connection)
        return None

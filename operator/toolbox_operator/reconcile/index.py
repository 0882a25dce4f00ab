"""Who refers to whom, and who carries which instance id: kept up to date, so that nobody looks through all objects."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Set
from typing import Any, TypeVar, cast

from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID, Body, Key, Kind

Node = tuple[Kind, Key]
K = TypeVar("K")
V = TypeVar("V")

REFERENCE = {
    Kind.MCP_SERVER: ("toolboxRef", "toolbox", Kind.TOOLBOX),
    Kind.CONNECTION: ("serverRef", "server", Kind.MCP_SERVER),
}
"""Field of the spec, field of status.resolved, and the kind meant."""


def referenced(kind: Kind, body: Body | None) -> frozenset[Node]:
    """What the object refers to: by its spec, as far as that can be read, and as once accepted."""
    if body is None or kind not in REFERENCE:
        return frozenset()
    target = REFERENCE[kind][2]
    return frozenset((target, key) for key in (named(kind, body), accepted(kind, body)) if key is not None)


def named(kind: Kind, body: Body) -> Key | None:
    """What the spec refers to, as far as it can be read."""
    reference = part(part(body, "spec"), REFERENCE[kind][0])
    name = reference.get("name")
    if not isinstance(name, str):
        return None
    return Key(str(reference.get("namespace") or body["metadata"]["namespace"]), name)


def accepted(kind: Kind, body: Body) -> Key | None:
    """What the reference was once resolved to, by the status."""
    resolved = part(part(body, "status"), "resolved").get(REFERENCE[kind][1])
    if not isinstance(resolved, str) or "/" not in resolved:
        return None
    namespace, _, name = resolved.partition("/")
    return Key(namespace, name)


def instance_ids(server: Body) -> frozenset[str]:
    """Every id that a server's body has, had, or will get."""
    annotations: Mapping[str, str] = server["metadata"].get("annotations") or {}
    ids = (
        annotations.get(ANNOTATION_INSTANCE_ID),
        part(server, "status").get("instanceId"),
        server["metadata"]["uid"],
    )
    return frozenset(str(each) for each in ids if each)


def part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A member of a body that has not been parsed yet; empty if it is no mapping."""
    found = body.get(name)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


class Index:
    """A cache listener. What it answers may be more than what holds: whoever asks looks at the objects themselves."""

    def __init__(self) -> None:
        self._referrers: dict[Node, set[Node]] = {}
        self._carriers: dict[str, set[Key]] = {}
        self._inside: dict[str, set[Node]] = {}

    def referrers(self, kind: Kind, key: Key) -> Set[Node]:
        """Objects that refer to this one."""
        return self._referrers.get((kind, key), frozenset[Node]())

    def carriers(self, instance_id: str) -> Set[Key]:
        """Servers that carry this id."""
        return self._carriers.get(instance_id, frozenset[Key]())

    def inside(self, namespace: str) -> Set[Node]:
        """Servers and connections in a namespace."""
        return self._inside.get(namespace, frozenset[Node]())

    def changed(self, kind: Kind, key: Key, old: Body | None, new: Body | None) -> None:
        """To be told of every change of the cache, before anybody who asks."""
        move(self._referrers, (kind, key), referenced(kind, old), referenced(kind, new))
        if kind in REFERENCE:
            move(self._inside, (kind, key), _namespace(key, old), _namespace(key, new))
        if kind is Kind.MCP_SERVER:
            before, after = (instance_ids(body) if body is not None else frozenset[str]() for body in (old, new))
            move(self._carriers, key, before, after)


def _namespace(key: Key, body: Body | None) -> frozenset[str]:
    return frozenset() if body is None else frozenset({key.namespace})


def move(index: MutableMapping[K, set[V]], entry: V, before: Set[K], after: Set[K]) -> None:
    """Have the entry under what comes after, and no longer under the rest of what was before."""
    for gone in before - after:
        entries = index.get(gone, set[V]())
        entries.discard(entry)
        if not entries:
            index.pop(gone, None)
    for added in after - before:
        index.setdefault(added, set()).add(entry)

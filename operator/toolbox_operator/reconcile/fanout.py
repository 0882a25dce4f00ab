"""Which other objects a change concerns: the edges between the kinds, followed both ways.

Only what the other side reads counts as a change, so that counters written to a status don't echo for ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, cast

from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID, Body, Key, Kind
from toolbox_operator.runtime import Requeue

Node = tuple[Kind, Key]

REFERENCE = {
    Kind.MCP_SERVER: ("toolboxRef", "toolbox", Kind.TOOLBOX),
    Kind.CONNECTION: ("serverRef", "server", Kind.MCP_SERVER),
}
"""Field of the spec, field of status.resolved, and the kind meant."""
COUNTERS = frozenset({"servers", "connections"})
"""Status fields that are derived from the other side."""


def referenced(kind: Kind, body: Body | None) -> frozenset[Node]:
    """What the object refers to: by its spec, as far as that can be read, and as once accepted."""
    if body is None or kind not in REFERENCE:
        return frozenset()
    field, resolved, target = REFERENCE[kind]
    nodes: set[Node] = set()
    reference = _part(body, "spec").get(field)
    if isinstance(reference, Mapping):
        names = cast("Mapping[str, object]", reference)
        name, namespace = names.get("name"), names.get("namespace") or body["metadata"]["namespace"]
        if isinstance(name, str):
            nodes.add((target, Key(str(namespace), name)))
    accepted = _part(_part(body, "status"), "resolved").get(resolved)
    if isinstance(accepted, str) and "/" in accepted:
        nodes.add((target, Key(*accepted.split("/", 1))))
    return frozenset(nodes)


def _part(body: Body, name: str) -> Mapping[str, object]:
    part: object = body.get(name)
    return cast("Mapping[str, object]", part) if isinstance(part, Mapping) else {}


class FanOut:
    """A cache listener that requeues the changed object, and those that are concerned."""

    def __init__(self, queue: Requeue) -> None:
        self._queue = queue
        self._referrers: dict[Node, set[Node]] = defaultdict(set)
        self._same_id: dict[str, set[Key]] = defaultdict(set)
        """MCPServers by instance id: of two with the same one, the other may go on when one leaves."""
        self._toolboxes: set[Key] = set()

    def changed(self, kind: Kind, key: Key, old: Body | None, new: Body | None) -> None:
        """To be told of every change of the cache."""
        self._queue.add(kind, key)
        concerned = set(self._concerned((kind, key), old, new))
        self._index((kind, key), old, new)
        for other_kind, other_key in concerned - {(kind, key)}:
            self._queue.add(other_kind, other_key)

    def _concerned(self, node: Node, old: Body | None, new: Body | None) -> Iterator[Node]:
        kind, _ = node
        if _visible_below(old) != _visible_below(new):
            yield from self._below(node)
        if _visible_above(old) != _visible_above(new):
            yield from referenced(kind, old) | referenced(kind, new)
        if new is None and old is not None:
            yield from self._rivals(kind, old)

    def _below(self, node: Node) -> Iterator[Node]:
        """Objects that refer to this one, and those that refer to them."""
        for referrer in self._referrers.get(node, ()):
            yield referrer
            yield from self._referrers.get(referrer, ())

    def _rivals(self, kind: Kind, gone: Body) -> Iterator[Node]:
        """Objects that may have been stalled because of this one."""
        if kind is Kind.MCP_SERVER:
            yield from ((Kind.MCP_SERVER, key) for key in self._same_id.get(_instance_id(gone), ()))
        elif kind is Kind.TOOLBOX:
            yield from ((Kind.TOOLBOX, key) for key in self._toolboxes)

    def _index(self, node: Node, old: Body | None, new: Body | None) -> None:
        kind, key = node
        before, after = referenced(kind, old), referenced(kind, new)
        for target in before - after:
            self._referrers[target].discard(node)
            if not self._referrers[target]:
                del self._referrers[target]
        for target in after - before:
            self._referrers[target].add(node)
        if kind is Kind.MCP_SERVER:
            if old is not None:
                same = self._same_id[_instance_id(old)]
                same.discard(key)
                if not same:
                    del self._same_id[_instance_id(old)]
            if new is not None:
                self._same_id[_instance_id(new)].add(key)
        elif kind is Kind.TOOLBOX:
            if new is None:
                self._toolboxes.discard(key)
            else:
                self._toolboxes.add(key)


def _instance_id(body: Body) -> str:
    annotations: Mapping[str, str] = body["metadata"].get("annotations") or {}
    return annotations.get(ANNOTATION_INSTANCE_ID) or str(body["metadata"]["uid"])


def _visible_below(body: Body | None) -> tuple[Any, ...]:
    """What objects that refer to this one read of it."""
    if body is None:
        return ()
    metadata = body["metadata"]
    status: Mapping[str, Any] = body.get("status") or {}
    shown = {name: value for name, value in status.items() if name not in COUNTERS}
    annotations = metadata.get("annotations")
    return metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp"), annotations, shown


def _visible_above(body: Body | None) -> tuple[Any, ...]:
    """What the object that this one refers to reads of it."""
    if body is None:
        return ()
    metadata = body["metadata"]
    status: Mapping[str, Any] = body.get("status") or {}
    finalizers = tuple(metadata.get("finalizers") or ())
    return (
        metadata["uid"],
        metadata.get("generation"),
        metadata.get("deletionTimestamp"),
        finalizers,
        status.get("phase"),
    )

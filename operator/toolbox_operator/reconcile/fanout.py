"""Which other objects a change concerns: the edges between the kinds, followed both ways.

Only what the other side reads counts as a change, so that counters written to a status don't echo for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.reconcile.index import Index, Node, instance_ids, referenced
from toolbox_operator.reconcile.relations import granted
from toolbox_operator.runtime import Requeue

COUNTERS = frozenset({"servers", "connections", "sessions"})
"""Status fields that are derived from the other side, or that it does not read."""


class FanOut:
    """A cache listener that requeues the changed object, and those that are concerned. Comes after the index."""

    def __init__(self, queue: Requeue, index: Index) -> None:
        self._queue = queue
        self._index = index
        self._toolboxes: set[Key] = set()

    def changed(self, kind: Kind, key: Key, old: Body | None, new: Body | None) -> None:
        """To be told of every change of the cache."""
        self._queue.add(kind, key)
        if kind is Kind.TOOLBOX:
            (self._toolboxes.discard if new is None else self._toolboxes.add)(key)
        for other_kind, other_key in set(self._concerned((kind, key), old, new)) - {(kind, key)}:
            self._queue.add(other_kind, other_key)

    def _concerned(self, node: Node, old: Body | None, new: Body | None) -> Iterator[Node]:
        kind, _ = node
        if _visible_below(old) != _visible_below(new):
            yield from self._below(node)
        if _visible_above(kind, old) != _visible_above(kind, new):
            yield from referenced(kind, old) | referenced(kind, new)
        if new is None and old is not None:
            yield from self._rivals(kind, old)

    def _below(self, node: Node) -> Iterator[Node]:
        """Objects that refer to this one, and those that refer to them."""
        for referrer in self._index.referrers(*node):
            yield referrer
            yield from self._index.referrers(*referrer)

    def _rivals(self, kind: Kind, gone: Body) -> Iterator[Node]:
        """Objects that may have been stalled because of this one: of two servers with one id the other may go on."""
        if kind is Kind.MCP_SERVER:
            for instance_id in instance_ids(gone):
                yield from ((Kind.MCP_SERVER, key) for key in self._index.carriers(instance_id))
        elif kind is Kind.TOOLBOX:
            yield from ((Kind.TOOLBOX, key) for key in self._toolboxes)


def _visible_below(body: Body | None) -> tuple[Any, ...]:
    """What objects that refer to this one read of it."""
    if body is None:
        return ()
    metadata = body["metadata"]
    status: Mapping[str, Any] = body.get("status") or {}
    shown = {name: value for name, value in status.items() if name not in COUNTERS}
    annotations = metadata.get("annotations")
    return metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp"), annotations, shown


def _visible_above(kind: Kind, body: Body | None) -> tuple[Any, ...]:
    """What the object that this one refers to reads of it: a Toolbox who uses it, a server who may call."""
    if body is None:
        return ()
    metadata = body["metadata"]
    status: Mapping[str, Any] = body.get("status") or {}
    use = (status.get("phase"), granted(body)) if kind is Kind.CONNECTION else referenced(kind, body)
    finalizers = tuple(metadata.get("finalizers") or ())
    return metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp"), finalizers, use

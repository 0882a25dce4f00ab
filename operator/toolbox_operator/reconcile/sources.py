"""Which objects read which Secrets and ConfigMaps: a change of one brings back those that read it, and no other.

Nothing of a Secret or ConfigMap is kept, not even its version: whoever is brought back reads it live. A reader says
what it reads *before* it does, so that a change that comes in between brings it back once more.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence

from toolbox_operator.api.meta import Body, Key
from toolbox_operator.domain.inputs import Ref, Source
from toolbox_operator.kube.api import CONFIG_MAPS, SECRETS, Resource
from toolbox_operator.kube.cache import EventType
from toolbox_operator.reconcile.index import Node, move
from toolbox_operator.runtime import Requeue

RESOURCE_OF_SOURCE: dict[Source, Resource] = {Source.SECRET: SECRETS, Source.CONFIG_MAP: CONFIG_MAPS}

_Origin = tuple[Source, Key]


class Sources:
    """Who reads what. `spread`: seconds over which readers are brought back when a watch may have missed something."""

    def __init__(
        self, queue: Requeue, *, spread: float, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._queue = queue
        self._spread = spread
        self._uniform = uniform
        self._read: dict[Node, frozenset[_Origin]] = {}
        self._readers: dict[_Origin, set[Node]] = {}
        self._marks: dict[Node, int] = {}
        self._next = itertools.count(1)

    def __len__(self) -> int:
        """How many Secrets and ConfigMaps are read by somebody."""
        return len(self._readers)

    def reads(self, node: Node, refs: Iterable[Ref]) -> int:
        """From now on `node` reads exactly these, in its own namespace.

        Returns a mark: values read after this call are the newest for as long as it stays the same.
        """
        origins = frozenset((ref.source, Key(node[1].namespace, ref.name)) for ref in refs)
        if not origins:
            self.forget(node)
            return 0
        before = self._read.get(node, frozenset[_Origin]())
        if origins != before:
            move(self._readers, node, before, origins)
            self._read[node] = origins
            self._marks[node] = next(self._next)
        return self._marks[node]

    def forget(self, node: Node) -> None:
        """`node` reads nothing any more."""
        move(self._readers, node, self._read.pop(node, frozenset[_Origin]()), frozenset[_Origin]())
        self._marks.pop(node, None)

    def changed(self, source: Source, key: Key) -> None:
        """A Secret or ConfigMap appeared, changed or went."""
        for node in sorted(self._readers.get((source, key), ())):
            self._marks[node] = next(self._next)
            self._queue.add(*node)

    def missed(self, source: Source) -> None:
        """Changes may have been missed: everybody who reads of this kind reads again, not all at once."""
        readers = {node for (kind, _), nodes in self._readers.items() if kind is source for node in nodes}
        for node in sorted(readers):
            self._marks[node] = next(self._next)
            self._queue.add_after(*node, self._uniform(0.0, self._spread))


class SourceWatch:
    """The audience of the watch of one kind of source."""

    def __init__(self, sources: Sources, source: Source) -> None:
        self._sources = sources
        self._source = source

    def begun(self, bodies: Sequence[Body]) -> None:
        """The watch begins, or begins anew."""
        del bodies  # none are listed
        self._sources.missed(self._source)

    def changed(self, type_: EventType, body: Body) -> None:
        """An event of the watch."""
        del type_  # the API server's own word counts, when the object is read
        self._sources.changed(self._source, Key.of(body))

"""What a namespace's labels decide: whom to look at again when they change."""

from __future__ import annotations

from collections.abc import Iterator

from toolbox_operator.api.meta import Body, Kind
from toolbox_operator.api.refs import From
from toolbox_operator.reconcile.context import Cache
from toolbox_operator.reconcile.index import Index, Node, part
from toolbox_operator.reconcile.relations import server_key, toolbox_key
from toolbox_operator.runtime import Requeue


class Relabelled:
    """A listener of namespace labels. Only objects whose standing labels decide are brought back."""

    def __init__(self, queue: Requeue, cache: Cache, index: Index) -> None:
        self._queue = queue
        self._cache = cache
        self._index = index

    def changed(self, namespace: str) -> None:
        """To be told of every namespace whose labels are others than before."""
        for node in sorted(set(self._concerned(namespace))):
            self._queue.add(*node)

    def _concerned(self, namespace: str) -> Iterator[Node]:
        for node in self._index.inside(namespace):
            kind, key = node
            body = self._cache.get(kind, key)
            if body is None:
                continue
            if kind is Kind.CONNECTION and (server := server_key(body)) is not None:
                if _by_labels(self._cache.get(Kind.MCP_SERVER, server), "sharing"):
                    yield node
            elif kind is Kind.MCP_SERVER and (toolbox := toolbox_key(body)) is not None:
                if _by_labels(self._cache.get(Kind.TOOLBOX, toolbox), "allowedServers"):
                    # The server, whoever is connected to it, and the Toolbox, which counts its servers.
                    yield from (node, *self._index.referrers(kind, key), (Kind.TOOLBOX, toolbox))


def _by_labels(body: Body | None, field: str) -> bool:
    """Whether the object's spec, which need not be valid, chooses namespaces by their labels."""
    return body is not None and part(part(part(body, "spec"), field), "namespaces").get("from") == From.SELECTOR

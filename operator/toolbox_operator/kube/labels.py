"""The labels of namespaces, and nothing else of them, as a watch delivers them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import cast

from toolbox_operator.api.meta import Body
from toolbox_operator.api.selector import Labels
from toolbox_operator.kube.cache import EventType

OnRelabelled = Callable[[str], None]
"""(namespace): its labels are others than before, known for the first time, or gone with it."""


class NamespaceLabels:
    """The audience of a listing watch of Namespaces, and what whoever decides by labels asks."""

    def __init__(self) -> None:
        self._labels: dict[str, Labels] = {}
        self._listeners: list[OnRelabelled] = []

    def listen(self, listener: OnRelabelled) -> None:
        """Have `listener` called for every change from now on."""
        self._listeners.append(listener)

    def of(self, namespace: str) -> Labels | None:
        """The newest labels seen; None: the namespace was not seen (yet), which says nothing about its labels."""
        return self._labels.get(namespace)

    def begun(self, bodies: Sequence[Body]) -> None:
        """A complete list."""
        before = self._labels
        self._labels = {cast("str", body["metadata"]["name"]): _labels(body) for body in bodies}
        for namespace in before.keys() | self._labels.keys():
            if before.get(namespace) != self._labels.get(namespace):
                self._tell(namespace)

    def changed(self, type_: EventType, body: Body) -> None:
        """An event of the watch."""
        namespace = cast("str", body["metadata"]["name"])
        before = self._labels.get(namespace)
        if type_ == "DELETED":
            self._labels.pop(namespace, None)
        else:
            self._labels[namespace] = _labels(body)
        if self._labels.get(namespace) != before:
            self._tell(namespace)

    def _tell(self, namespace: str) -> None:
        for listener in self._listeners:
            listener(namespace)


def _labels(body: Body) -> Labels:
    # The same few keys and values are on thousands of namespaces: one copy of each is enough.
    labels: Labels = body["metadata"].get("labels") or {}
    return {sys.intern(key): sys.intern(value) for key, value in labels.items()}

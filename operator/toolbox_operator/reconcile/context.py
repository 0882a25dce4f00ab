"""What every reconciler is built from, and what the controller expects of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.hosts.registry import Hosts
from toolbox_operator.kube.api import Kube, Resource
from toolbox_operator.kube.events import Events
from toolbox_operator.kube.labels import NamespaceLabels
from toolbox_operator.reconcile.index import Index
from toolbox_operator.reconcile.sources import Sources
from toolbox_operator.reconcile.usage import UsageBook
from toolbox_operator.runtime import Clock, Leadership, Outcome, Requeue, Timings
from toolbox_operator.store.api import Store


class Cache(Protocol):
    """What the watches have seen. May lag behind; never a reason to revoke or remove without a live read."""

    def get(self, kind: Kind, key: Key) -> Body | None:
        """The newest body seen, or None when the last event or list says it is gone."""
        ...

    def all(self, kind: Kind) -> Sequence[Body]:
        """Every object of the kind, in no particular order."""
        ...

    def absorb(self, resource: Resource, body: Body) -> None:
        """Take what the API server answered, unless something newer was seen."""
        ...


class Reconciler(Protocol):
    """Brings one object of one kind closer to its spec. Idempotent; never runs twice at once for one key."""

    @property
    def kind(self) -> Kind:
        """The kind whose keys it takes."""
        ...

    async def reconcile(self, key: Key) -> Outcome:
        """One pass. Writes status itself; raises only what the controller shall retry, or `Fenced`."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a reconciler may touch: `XReconciler(context)` is how wiring builds each one."""

    kube: Kube
    cache: Cache
    index: Index
    labels: NamespaceLabels
    sources: Sources
    hosts: Hosts
    store: Store
    usage: UsageBook
    events: Events
    leadership: Leadership
    queue: Requeue
    clock: Clock
    timings: Timings
    cluster_id: str
    """UID of the `kube-system` namespace."""

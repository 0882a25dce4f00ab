"""What the policy says now, and how it is cut into frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel

from toolbox_dtma.link.messages import MAX_FRAME_BYTES, Change, GrantPolicy, InstanceRoute, KeyRing, Snapshot
from toolbox_dtma.wire import HostConfig

MAX_ITEM_BYTES = MAX_FRAME_BYTES * 3 // 4
"""Largest single route, grant or configuration; what remains of a frame is for the envelope."""

Part = TypeVar("Part")


class PolicyItemTooLarge(Exception):
    """A single grant, route or configuration would not fit into a frame."""


def check_size(item: GrantPolicy | InstanceRoute | HostConfig) -> None:
    """Raises `PolicyItemTooLarge`; ask before the item is stored."""
    if _size(item) > MAX_ITEM_BYTES:
        raise PolicyItemTooLarge(f"it takes more than {MAX_ITEM_BYTES} bytes of policy")


def split(change: Change) -> list[Change]:
    """The change as several that each fit a frame; at least one, in an order safe to apply one by one."""
    first = Change(keyring=change.keyring, config=change.config)
    parts = [first] if change.keyring is not None or change.config is not None else []
    parts += [Change(instances=batch) for batch in _batches(change.instances, _size)]
    parts += [Change(grants=batch) for batch in _batches(change.grants, _size)]
    parts += [Change(grants_gone=batch) for batch in _batches(change.grants_gone, len)]
    parts += [Change(instances_gone=batch) for batch in _batches(change.instances_gone, len)]
    return parts or [first]


def _size(item: BaseModel) -> int:
    return len(item.model_dump_json().encode())


def _batches(items: Iterable[Part], size: Callable[[Part], int]) -> Iterator[tuple[Part, ...]]:
    batch: list[Part] = []
    used = 0
    for item in items:
        # Quotes and a comma besides.
        cost = size(item) + 4
        if batch and used + cost > MAX_ITEM_BYTES:
            yield tuple(batch)
            batch, used = [], 0
        batch.append(item)
        used += cost
    if batch:
        yield tuple(batch)


@dataclass(slots=True)
class Contents:
    """The whole policy."""

    keyring: KeyRing
    config: HostConfig | None = None
    instances: dict[str, InstanceRoute] = field(default_factory=dict[str, InstanceRoute])
    grants: dict[str, GrantPolicy] = field(default_factory=dict[str, GrantPolicy])
    applied: Callable[[Change], None] = lambda change: None
    """Called with every change once it is part of the policy; must not block, raise or change it."""

    def withdraws(self, change: Change) -> bool:
        """Whether somebody may lose something: a grant or an instance goes, or a known grant changes."""
        return bool(change.grants_gone or change.instances_gone) or any(
            self.grants.get(grant.uid, grant) != grant for grant in change.grants
        )

    def apply(self, change: Change) -> None:
        """Make the change part of the policy."""
        self.instances.update({route.id: route for route in change.instances})
        self.grants.update({grant.uid: grant for grant in change.grants})
        for instance_id in change.instances_gone:
            self.instances.pop(instance_id, None)
        for uid in change.grants_gone:
            self.grants.pop(uid, None)
        if change.keyring is not None:
            self.keyring = change.keyring
        if change.config is not None:
            self.config = change.config
        self.applied(change)

    def snapshot(self, revision: int) -> list[Snapshot]:
        """The whole policy in parts that each fit a frame; at least one. Parts count from 0."""
        whole = Change(
            keyring=self.keyring,
            config=self.config,
            instances=tuple(self.instances.values()),
            grants=tuple(self.grants.values()),
        )
        changes = split(whole)
        return [
            Snapshot(revision=revision, part=number, parts=len(changes), change=change)
            for number, change in enumerate(changes)
        ]

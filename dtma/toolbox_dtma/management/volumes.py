"""What becomes of an instance's volumes when it goes, and how long that is known."""

from __future__ import annotations

from collections.abc import Iterable

from toolbox_dtma.engine.api import Holder, Wanted
from toolbox_dtma.state.records import InstanceRecord, LeftVolumes, TombstoneRecord
from toolbox_dtma.wire import VolumePolicy


def removal_of(record: InstanceRecord, policy: VolumePolicy | None) -> InstanceRecord:
    """The order to remove an instance. A policy replaces the one that came with it: that may be an edit behind."""
    desired = record.desired
    if policy is not None:
        desired = desired.model_copy(update={"volume_policy": policy})
    return record.model_copy(update={"deleting": True, "desired": desired})


def spent_by(record: InstanceRecord) -> Holder | None:
    """Whose volumes go with an instance that is removed; none if they stay."""
    if record.desired.volume_policy is VolumePolicy.RETAIN:
        return None
    return Wanted(record.id, record.owner, record.desired).holder


def left_by(record: InstanceRecord) -> LeftVolumes | None:
    """What a tombstone keeps of an instance's volumes."""
    desired = record.desired
    if not desired.volumes and desired.volume_policy is VolumePolicy.DELETE:
        return None
    return LeftVolumes(instance=record.id, namespace=desired.namespace, name=desired.name, policy=desired.volume_policy)


def spent_volumes(tombstones: Iterable[TombstoneRecord]) -> dict[Holder, frozenset[str]]:
    """Volumes that may be removed wherever they turn up, by holder and by the UIDs of the objects they were made for.

    Their removal was ordered, and never that they be kept: an object that is created anew takes over the volumes of the
    one before, so that one order to keep them outweighs all to remove them, in whatever order they came. Clocks do not
    decide over data.
    """
    spent: dict[Holder, set[str]] = {}
    kept: set[Holder] = set()
    for stone in tombstones:
        left = stone.volumes
        if left is None:
            continue
        holder = Holder(left.instance, stone.owner, left.namespace, left.name)
        if left.policy is VolumePolicy.RETAIN:
            kept.add(holder)
        else:
            spent.setdefault(holder, set()).add(stone.uid)
    return {holder: frozenset(uids) for holder, uids in spent.items() if holder not in kept}
